package apiserver

import (
	"strings"
	"testing"
)

func TestTheQuotaIsAProblemBeforeItIsReached(t *testing.T) {
	for _, test := range []struct {
		name  string
		bytes int64
		want  string
	}{
		{"new", 1 << 20, ""},
		{"far", 90 << 20, ""},
		{"near", 96 << 20, "96 of the 100 MiB"},
		{"beyond", 101 << 20, "raise --etcd-quota-bytes"},
	} {
		if got := quotaProblem(test.bytes, 100<<20); !strings.Contains(got, test.want) || test.want == "" && got != "" {
			t.Errorf("%s: %q", test.name, got)
		}
	}
}
