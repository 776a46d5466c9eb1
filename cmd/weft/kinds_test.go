package main

import "testing"

func TestEveryKindIsShown(t *testing.T) {
	for _, k := range kinds {
		if k.cells == nil || len(k.columns) == 0 {
			t.Errorf("%s have no columns", k.Plural)
			continue
		}
		row, err := k.row("east", []byte(`{"metadata":{"name":"one"},"spec":{}}`))
		if err != nil || len(row) != len(k.heads()) {
			t.Errorf("%s: %d cells in %d columns (%v)", k.Plural, len(row), len(k.heads()), err)
		}
	}
	if len(listings) != len(kinds) {
		t.Errorf("%d listings of %d kinds", len(listings), len(kinds))
	}
}
