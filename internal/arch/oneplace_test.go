package arch

import (
	"go/ast"
	"go/token"
	"strings"
	"testing"
)

// A table of the agent is described beside its rows, in a file of its own; whatever lists,
// shows, counts, fills or follows tables goes by the description and does not name it.
func TestATableIsDescribedInOnePlace(t *testing.T) {
	described := map[string]string{}
	var files []*file
	for _, f := range goFiles(t) {
		listing := f.path == "meshagent/http.go" || f.path == "meshagent/program/report.go" || strings.HasPrefix(f.path, "cmd/weft/debug")
		if f.test() || f.dir() != "meshagent/tables" && !listing {
			continue
		}
		files = append(files, f)
		here := ""
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			lit, ok := n.(*ast.CompositeLit)
			if !ok {
				return true
			}
			if of, ok := lit.Type.(*ast.IndexExpr); !ok || ident(of.X) != "table" || f.dir() != "meshagent/tables" {
				return true
			}
			name := text(field(lit, "name"))
			switch {
			case name == "":
				t.Errorf("%s: a table without a name", f.at(n))
			case described[name] != "":
				t.Errorf("%s: table %s is described at %s, too", f.at(n), name, described[name])
			case here != "":
				t.Errorf("%s: table %s is in a file with table %s: give it its own", f.at(n), name, here)
			}
			described[name], here = f.at(n), name
			return true
		})
	}
	if len(described) < 10 {
		t.Errorf("found only %d tables: are they described in another way?", len(described))
	}
	for _, f := range files {
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if _, ok := n.(*ast.ImportSpec); ok {
				return false
			}
			lit, ok := n.(*ast.BasicLit)
			if !ok || lit.Kind != token.STRING {
				return true
			}
			if at := described[text(lit)]; at != "" && !strings.HasPrefix(at, f.path+":") {
				t.Errorf("%s: names table %s: go by its description at %s", f.at(n), text(lit), at)
			}
			return true
		})
	}
}

// field is a field's value in a literal of a struct; nil if it is not given.
func field(lit *ast.CompositeLit, name string) ast.Expr {
	for _, e := range lit.Elts {
		if kv, ok := e.(*ast.KeyValueExpr); ok && ident(kv.Key) == name {
			return kv.Value
		}
	}
	return nil
}
