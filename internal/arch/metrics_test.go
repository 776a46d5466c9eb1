package arch

import (
	"go/ast"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// metricName is the form of our metrics' names: weft, the part, the thing and its unit.
var metricName = regexp.MustCompile(`^weft_[a-z]+(_[a-z0-9]+)+$`)

// Metrics are made in three ways: by an Opts struct, by a description, and by a
// function that puts a prefix before the names of descriptions.
func TestMetricNamesAreWellFormed(t *testing.T) {
	found := 0
	files := goFiles(t)
	helpers := prefixes(files)
	for _, f := range files {
		if f.test() {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			name, counter, ok := metric(n)
			if call, is := n.(*ast.CallExpr); is && len(call.Args) > 0 {
				if prefix := helpers[f.dir()+"."+ident(call.Fun)]; prefix != "" {
					name, ok = prefix+text(call.Args[0]), true
				}
			}
			if !ok {
				return true
			}
			found++
			if !metricName.MatchString(name) {
				t.Errorf("%s: metric %q: use weft_, the part and the thing in a-z, 0-9 and _", f.at(n), name)
			}
			if counter && !strings.HasSuffix(name, "_total") {
				t.Errorf("%s: counter %q does not end in _total", f.at(n), name)
			}
			if regexp.MustCompile(`_(ms|millis|milliseconds|micros|minutes|kib|mib|kilobytes|megabytes)(_total)?$`).MatchString(name) {
				t.Errorf("%s: metric %q: use seconds and bytes", f.at(n), name)
			}
			return true
		})
	}
	if found == 0 {
		t.Error("found no metric: are they made in a fourth way?")
	}
}

// metric reads the name out of prometheus.XOpts{…} and prometheus.NewDesc(…).
func metric(n ast.Node) (name string, counter, ok bool) {
	switch n := n.(type) {
	case *ast.CompositeLit:
		sel, is := n.Type.(*ast.SelectorExpr)
		if !is || !strings.HasSuffix(sel.Sel.Name, "Opts") || ident(sel.X) != "prometheus" || sel.Sel.Name == "HandlerOpts" {
			return "", false, false
		}
		parts := map[string]string{}
		for _, e := range n.Elts {
			if kv, is := e.(*ast.KeyValueExpr); is {
				parts[ident(kv.Key)] = text(kv.Value)
			}
		}
		for _, key := range []string{"Namespace", "Subsystem", "Name"} {
			if parts[key] != "" {
				name += "_" + parts[key]
			}
		}
		name = strings.TrimPrefix(name, "_")
		return name, sel.Sel.Name == "CounterOpts", name != ""
	case *ast.CallExpr:
		if !isCall(n, "prometheus", "NewDesc") || len(n.Args) == 0 {
			return "", false, false
		}
		name = text(n.Args[0])
		return name, false, name != ""
	}
	return "", false, false
}

// prefixes finds functions that call NewDesc("prefix" + their parameter), by folder and
// name.
func prefixes(files []*file) map[string]string {
	found := map[string]string{}
	for _, f := range files {
		for _, d := range f.syntax.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			ast.Inspect(fn.Body, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok && isCall(call, "prometheus", "NewDesc") && len(call.Args) > 0 {
					if sum, ok := call.Args[0].(*ast.BinaryExpr); ok && ident(sum.Y) != "" {
						found[f.dir()+"."+fn.Name.Name] = text(sum.X)
					}
				}
				return true
			})
		}
	}
	return found
}

func ident(e ast.Expr) string {
	if id, ok := e.(*ast.Ident); ok {
		return id.Name
	}
	return ""
}

// text is the value of a string literal, or of literals joined by +.
func text(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, _ := strconv.Unquote(e.Value)
		return s
	case *ast.BinaryExpr:
		if a, b := text(e.X), text(e.Y); a != "" && b != "" {
			return a + b
		}
	}
	return ""
}
