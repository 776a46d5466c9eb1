package bpf

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
)

// Every row of every map has the offsets in Go that it has in the compiled object.
func TestLayout(t *testing.T) {
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	tables := reflect.TypeFor[Maps]()
	for i := range tables.NumField() {
		field := tables.Field(i)
		m, ok := spec.Maps[strings.ToLower(field.Name)]
		if !ok {
			t.Errorf("Maps has a field %s, the object has no such map", field.Name)
			continue
		}
		lookup, _ := field.Type.MethodByName("Lookup")
		for _, half := range []struct {
			name string
			c    btf.Type
			row  reflect.Type
		}{{"key", m.Key, lookup.Type.In(0)}, {"value", m.Value, lookup.Type.Out(0)}} {
			name := m.Name + "'s " + half.name
			if c, ok := btf.UnderlyingType(half.c).(*btf.Struct); ok && half.row.Kind() == reflect.Struct {
				compareLayout(t, name, c, half.row)
			} else if size, err := btf.Sizeof(half.c); err != nil || size != int(half.row.Size()) {
				t.Errorf("%s: %d bytes in C, %d in Go (%v)", name, size, half.row.Size(), err)
			}
		}
	}
	// What is not a row of its own.
	for name, row := range map[string]any{"said": Said{}, "group": Group{}, "event": Event{}, "counter": counted{}, "stranded": stranded{}} {
		var c *btf.Struct
		if err := spec.Types.TypeByName(name, &c); err != nil {
			t.Errorf("struct %s: %v", name, err)
			continue
		}
		compareLayout(t, name, c, reflect.TypeOf(row))
	}
}

func compareLayout(t *testing.T, name string, c *btf.Struct, g reflect.Type) {
	t.Helper()
	if uint64(c.Size) != uint64(g.Size()) {
		t.Errorf("%s: %d bytes in C, %d in Go", name, c.Size, g.Size())
	}
	if len(c.Members) != g.NumField() {
		t.Errorf("%s: %d members in C, %d fields in Go", name, len(c.Members), g.NumField())
		return
	}
	for i, m := range c.Members {
		f := g.Field(i)
		size, err := btf.Sizeof(m.Type)
		if err != nil {
			t.Fatal(err)
		}
		if m.Offset.Bytes() != uint32(f.Offset) || size != int(f.Type.Size()) || plain(m.Name) != plain(f.Name) {
			t.Errorf("%s: member %d is %s, %d bytes at %d in C, %s, %d bytes at %d in Go",
				name, i, m.Name, size, m.Offset.Bytes(), f.Name, f.Type.Size(), f.Offset)
		}
	}
}

func plain(name string) string { return strings.ToLower(strings.ReplaceAll(name, "_", "")) }

// The names and numbers of reasons are those of lib/reasons.h.
func TestReasons(t *testing.T) {
	text, err := os.ReadFile("lib/reasons.h")
	if err != nil {
		t.Fatal(err)
	}
	inC := map[Reason]string{}
	for _, m := range regexp.MustCompile(`REASON\((\d+), \w+, "([a-z-]+)"\)`).FindAllStringSubmatch(string(text), -1) {
		n, _ := strconv.Atoi(m[1])
		inC[Reason(n)] = m[2]
	}
	if !reflect.DeepEqual(inC, reasonNames) {
		t.Errorf("lib/reasons.h has %v\nreason.go has %v", inC, reasonNames)
	}
	for r := range inC {
		if r >= 64 {
			t.Errorf("%s is %d, counters end at 63", r, r)
		}
	}
}

// The committed object was built from the committed sources.
func TestObjectIsCurrent(t *testing.T) {
	var files []string
	for _, pattern := range []string{"*.c", "lib/*.h"} {
		match, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, match...)
	}
	h := sha256.New()
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		h.Write(text)
	}
	want, err := os.ReadFile("datapath.sum")
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%x  -\n", h.Sum(nil)); got != string(want) {
		t.Errorf("sources have changed since the object was built: run go generate ./bpf")
	}
}
