package arch

import (
	"go/ast"
	"go/token"
	"regexp"
	"strings"
	"testing"
)

// keyText is text that begins a key of the store, ours or Cilium's.
var keyText = regexp.MustCompile("^[\"`](weft|cilium)/([a-z.]|$)")

// Package wire alone spells keys: elsewhere none is written out, or made by adding text to
// a prefix of wire's. Tests may, where they say what is written.
func TestKeysAreSpelledInWireAlone(t *testing.T) {
	spelled := 0
	for _, f := range goFiles(t) {
		if f.test() || f.twin() {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ImportSpec:
				return false
			case *ast.BasicLit:
				if n.Kind != token.STRING || !keyText.MatchString(n.Value) {
					break
				}
				if spelled++; part(f.dir()) != "wire" {
					t.Errorf("%s: %s is a key: take it from package wire", f.at(n), n.Value)
				}
			case *ast.BinaryExpr:
				left, is := n.X.(*ast.SelectorExpr)
				_, adds := n.Y.(*ast.BasicLit)
				if is && adds && n.Op == token.ADD && ident(left.X) == "wire" && strings.HasSuffix(left.Sel.Name, "Prefix") {
					t.Errorf("%s: a key made of wire.%s and more: name it in package wire", f.at(n), left.Sel.Name)
				}
			}
			return true
		})
	}
	if spelled < 10 {
		t.Errorf("found only %d keys in package wire", spelled)
	}
}
