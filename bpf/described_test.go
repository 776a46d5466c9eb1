package bpf

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
)

// Every map of the object is described once, and every field of Maps and of Limits is a
// map's.
func TestEveryMapIsDescribed(t *testing.T) {
	spec, err := loadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	here := []string{"doomed", "no_share", "waiting_room", "waited"} // of one sweep, always empty, and of one generation
	var c Config
	maps := map[string]*ebpf.Map{}
	for _, d := range described {
		if _, ok := spec.Maps[d.name]; !ok || d.version < 1 || maps[d.name] != nil {
			t.Errorf("map %s version %d is described: in the object %v, described before %v", d.name, d.version, ok, maps[d.name] != nil)
		}
		maps[d.name] = &ebpf.Map{}
		if d.limit == nil {
			continue
		}
		if d.rows == 0 || d.about == "" {
			t.Errorf("map %s: %d rows by default, %q", d.name, d.rows, d.about)
		}
		*d.limit(&c.Limits) = 7
		want := uint32(7)
		if d.name == "flows" {
			want *= rowsPerFlow
		}
		if d.size(c) != want {
			t.Errorf("map %s does not have the size that was chosen", d.name)
		}
	}
	for name, m := range spec.Maps {
		scratch := m.Type == ebpf.PerCPUArray && m.MaxEntries == 1
		if maps[name] == nil && !scratch && !slices.Contains(here, name) && !strings.HasPrefix(name, ".") {
			t.Errorf("map %s (%v) is not described", name, m.Type)
		}
	}
	fields := reflect.ValueOf(tables(maps)).Elem()
	for i := range fields.NumField() {
		name := strings.ToLower(fields.Type().Field(i).Name)
		if table, ok := fields.Field(i).Interface().(interface{ Name() string }); !ok || table.Name() != name {
			t.Errorf("field %s of Maps is not described as the map %s", fields.Type().Field(i).Name, name)
		}
	}
	limits := reflect.ValueOf(c.Limits)
	for i := range limits.NumField() {
		if limits.Field(i).Uint() != 7 {
			t.Errorf("field %s of Limits limits no map", limits.Type().Field(i).Name)
		}
	}
}
