package arch

import (
	"crypto/sha256"
	"encoding/hex"
	"go/ast"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func itoa(n int) string { return strconv.Itoa(n) }

// maxLines is how long a file may get before it holds more than one idea.
const maxLines = 550

func TestEveryPackageSaysWhatItDoes(t *testing.T) {
	docs, seen := map[string]string{}, map[string]*file{}
	for _, f := range goFiles(t) {
		if f.test() {
			continue
		}
		seen[f.dir()] = f
		if f.syntax.Doc != nil {
			if docs[f.dir()] != "" {
				t.Errorf("%s: package %s has a second doc comment", f.path, f.dir())
			}
			docs[f.dir()] = f.syntax.Doc.Text()
		}
	}
	for dir, f := range seen {
		name := f.syntax.Name.Name
		begin := "Package " + name + " "
		if name == "main" {
			begin = "Command "
		}
		doc := docs[dir]
		first, _, _ := strings.Cut(doc, "\n\n")
		if !strings.HasPrefix(doc, begin) || !strings.Contains(first, ".") && !strings.HasSuffix(strings.TrimSpace(first), ":") {
			t.Errorf("%s: begin the package's doc comment with %q and say in one sentence what it does", dir, begin)
		}
	}
}

func TestFilesHoldOneIdea(t *testing.T) {
	for _, f := range goFiles(t) {
		if !f.machine() && f.lines() > maxLines {
			t.Errorf("%s has %d lines, more than %d: it holds more than one idea", f.path, f.lines(), maxLines)
		}
	}
}

// The object carries the checksum of the sources it was compiled from, so that
// a forgotten `make generate` is found without clang. CI compiles again.
func TestGeneratedFilesAreCurrent(t *testing.T) {
	sum := sha256.New()
	for _, pattern := range []string{`^bpf/[^/]+\.c$`, `^bpf/lib/[^/]+\.h$`} {
		names := slices.DeleteFunc(sources(t), func(n string) bool { return !regexp.MustCompile(pattern).MatchString(n) })
		slices.Sort(names)
		for _, name := range names {
			sum.Write([]byte(read(t, name)))
		}
	}
	want, _, _ := strings.Cut(read(t, "bpf/datapath.sum"), " ")
	if got := hex.EncodeToString(sum.Sum(nil)); got != want {
		t.Errorf("the BPF sources are newer than the committed object: run `make generate`")
	}
}

// A test that sleeps is slow or wrong, except in testing/synctest, where time is
// virtual, and between the attempts of a loop.
func TestTestsDoNotSleep(t *testing.T) {
	for _, f := range goFiles(t) {
		_, others := f.imports()
		if !f.test() || slices.Contains(others, "testing/synctest") {
			continue
		}
		between := map[ast.Node]bool{}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if loop, ok := n.(*ast.ForStmt); ok && loop.Post != nil {
				if s, ok := loop.Post.(*ast.ExprStmt); ok {
					between[s.X] = true
				}
			}
			if call, ok := n.(*ast.CallExpr); ok && isCall(call, "time", "Sleep") && !between[call] {
				t.Errorf("%s: do not sleep: wait for what the test needs, or use testing/synctest", f.at(call))
			}
			return true
		})
	}
}

// A skipped test names what the machine lacks.
func TestSkippedTestsNameWhatTheyNeed(t *testing.T) {
	for _, f := range goFiles(t) {
		if !f.test() {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); ok && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, sel.Sel.Name) {
				reason := ""
				if len(call.Args) > 0 {
					if lit, ok := call.Args[0].(*ast.BasicLit); ok {
						reason = lit.Value
					}
				}
				if !strings.HasPrefix(reason, `"needs `) {
					t.Errorf("%s: begin with what it needs: %s", f.at(call), reason)
				}
			}
			return true
		})
	}
}

func isCall(call *ast.CallExpr, pkg, name string) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return false
	}
	x, ok := sel.X.(*ast.Ident)
	return ok && x.Name == pkg
}
