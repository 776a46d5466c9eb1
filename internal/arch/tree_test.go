package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/weft-mesh/weft"

const root = "../.."

// A file is one Go file of the tree.
type file struct {
	path   string // from the root, with slashes
	syntax *ast.File
	set    *token.FileSet
	text   string
}

func (f *file) test() bool    { return strings.HasSuffix(f.path, "_test.go") }
func (f *file) dir() string   { return path.Dir(f.path) }
func (f *file) lines() int    { return strings.Count(f.text, "\n") }
func (f *file) twin() bool    { return strings.HasSuffix(f.dir(), "test") }
func (f *file) machine() bool { return strings.Contains(f.text, "// Code generated ") }

// at is a node's position, for messages.
func (f *file) at(n ast.Node) string {
	p := f.set.Position(n.Pos())
	return f.path + ":" + itoa(p.Line)
}

// imports are the file's imports from this module, relative to its root.
func (f *file) imports() (ours, others []string) {
	for _, spec := range f.syntax.Imports {
		name := strings.Trim(spec.Path.Value, `"`)
		if rest, ok := strings.CutPrefix(name, module+"/"); ok {
			ours = append(ours, rest)
		} else {
			others = append(others, name)
		}
	}
	return ours, others
}

// sources lists the paths of all files in the tree.
func sources(t *testing.T) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() {
			if p != root && (strings.HasPrefix(name, ".") && name != ".ci" || name == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		rel, err := filepath.Rel(root, p)
		if err == nil && d.Type().IsRegular() {
			paths = append(paths, filepath.ToSlash(rel))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// goFiles are the Go files of the tree, parsed once.
func goFiles(t *testing.T) []*file {
	t.Helper()
	if parsed == nil {
		parsed = parse(t)
	}
	return parsed
}

var parsed []*file

func parse(t *testing.T) (files []*file) {
	t.Helper()
	for _, name := range sources(t) {
		if !strings.HasSuffix(name, ".go") {
			continue
		}
		f := &file{path: name, set: token.NewFileSet(), text: read(t, name)}
		var err error
		if f.syntax, err = parser.ParseFile(f.set, name, f.text, parser.ParseComments); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

func TestTheTreeIsRead(t *testing.T) {
	if n := len(goFiles(t)); n < 100 {
		t.Errorf("found only %d Go files: the other tests check nothing", n)
	}
}
