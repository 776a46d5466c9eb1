package arch

import (
	"go/ast"
	"go/token"
	"slices"
	"testing"
)

// A kind of object is described in package manifest; whoever treats one differently from the
// others goes by its name there.
func TestAKindIsDescribedInOnePlace(t *testing.T) {
	plurals := map[string]bool{}
	files := goFiles(t)
	for _, f := range files {
		if f.path != "manifest/kinds.go" {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if spec, ok := n.(*ast.ValueSpec); ok && len(spec.Values) == 1 && text(spec.Values[0]) != "" {
				plurals[text(spec.Values[0])] = true
			}
			return true
		})
	}
	if len(plurals) < 8 {
		t.Fatalf("found only %d kinds: are they described elsewhere?", len(plurals))
	}
	names := func(e ast.Expr) bool {
		lit, ok := e.(*ast.BasicLit)
		return ok && lit.Kind == token.STRING && plurals[text(lit)]
	}
	for _, f := range files {
		if f.test() || f.twin() || !slices.Contains([]string{"apiserver", "meshagent", "cmd/weft"}, part(f.dir())) {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			bad := false
			switch n := n.(type) {
			case *ast.CaseClause:
				bad = slices.ContainsFunc(n.List, names)
			case *ast.BinaryExpr:
				bad = (n.Op == token.EQL || n.Op == token.NEQ) && (names(n.X) || names(n.Y))
			case *ast.CallExpr:
				for _, of := range []string{"ObjectKey", "ObjectKindPrefix"} {
					bad = bad || isCall(n, "wire", of) && slices.ContainsFunc(n.Args, names)
				}
			}
			if bad {
				t.Errorf("%s: spells a kind of object: take it from manifest/kinds.go", f.at(n))
			}
			return true
		})
	}
}
