package main

import "testing"

func TestNearest(t *testing.T) {
	known := []string{"observe", "status", "service", "services", "pods", "apply", "delete"}
	for word, want := range map[string]string{
		"observ": "observe", "obsevre": "observe", "stauts": "status", "servics": "service", "pod": "pods", "po": "",
		"aply": "apply", "x": "", "": "", "delete": "delete", "kubernetes": "",
	} {
		if got := nearest(word, known); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}
