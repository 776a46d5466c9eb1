package wire

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func sampleWrites() []Write {
	return []Write{
		{Key: ObjectKey("services", "shop", "web"), Value: []byte(`{"kind":"Service"}`), Action: "created"},
		{Key: "weft/state/serviceips/10.101.0.7", Value: []byte("shop/web")},
		{Key: ObjectKey("pods", "shop", "web-1"), Delete: true, Action: "deleted"},
		{Key: "weft/state/empty"},
	}
}

func TestWritesReadBack(t *testing.T) {
	want := sampleWrites()
	part := MarshalWrites(want)
	got, err := UnmarshalWrites(part)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	size := 0
	for i := range want {
		size += want[i].Size()
	}
	if len(part) > size {
		t.Errorf("%d bytes, but Size says %d at most", len(part), size)
	}
	for n := 1; n < len(part); n++ {
		if got, err := UnmarshalWrites(part[:n]); err == nil && len(got) == len(want) {
			t.Errorf("all writes in %d of %d bytes", n, len(part))
		}
	}
}

// What is not understood is refused, never left out: half a change would be carried out.
func TestUnknownWritesAreRefused(t *testing.T) {
	for name, part := range map[string]string{
		"kind":                "\x03\x01k\x00\x00",
		"no key":              "\x01\x00\x00\x00",
		"deletion with value": "\x02\x01k\x00\x01v",
		"length":              "\x01\xff\xff\xff\xff\xff\xff\xff\xff\x7fk",
		"endless length":      "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
		"the end":             "\x01\x01k\x00",
	} {
		if got, err := UnmarshalWrites([]byte(part)); err == nil {
			t.Errorf("%s: read as %+v", name, got)
		}
	}
}

func TestParseChange(t *testing.T) {
	good := Change{Format: ChangeFormat, ID: "a1", User: "admin", Parts: 2, Writes: 10, Part: 1, Next: 2, Made: 7}
	if got, err := ParseChange(Marshal(good)); err != nil || got != good {
		t.Errorf("%+v, %v", got, err)
	}
	for name, spoil := range map[string]func(*Change){
		"format 2": func(c *Change) { c.Format = 2 },
		"the ID":   func(c *Change) { c.ID = "" },
		"ID":       func(c *Change) { c.ID = "a/b" },
		"part 2":   func(c *Change) { c.Part = 2 },
		"part -1":  func(c *Change) { c.Part = -1 },
		"10 of 10": func(c *Change) { c.Made = 10 },
	} {
		c := good
		spoil(&c)
		if _, err := ParseChange(Marshal(c)); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ParseChange([]byte("{")); err == nil {
		t.Error("half a change was read")
	}
}

func FuzzUnmarshalWrites(f *testing.F) {
	f.Add(MarshalWrites(sampleWrites()))
	f.Add([]byte("\x02\x01k\x00\x00"))
	f.Add([]byte("\x01\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, part []byte) {
		writes, err := UnmarshalWrites(bytes.Clone(part))
		if err != nil {
			return
		}
		again, err := UnmarshalWrites(MarshalWrites(writes))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(writes, again, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("(-first +again):\n%s", diff)
		}
	})
}

func FuzzParseChange(f *testing.F) {
	f.Add(Marshal(Change{Format: ChangeFormat, ID: "a1", User: "admin", Parts: 2, Writes: 10, Part: 1, Next: 2, Made: 7}))
	f.Add([]byte(`{"format":1,"id":"a/b"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseChange(b)
		if err != nil {
			return
		}
		if again, err := ParseChange(Marshal(c)); err != nil || !again.At.Equal(c.At) || again.ID != c.ID || again.Made != c.Made || again.Part != c.Part {
			t.Errorf("%+v, then %+v, %v", c, again, err)
		}
	})
}
