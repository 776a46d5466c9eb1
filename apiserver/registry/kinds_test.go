package registry

import "testing"

func TestEveryKindIsRead(t *testing.T) {
	for _, k := range Kinds() {
		if k.read == nil || readers[k.Plural] == nil {
			t.Errorf("nobody reads a %s", k.Name)
		}
	}
	if len(readers) != len(Kinds()) {
		t.Errorf("%d readers of %d kinds", len(readers), len(Kinds()))
	}
}
