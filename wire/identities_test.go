package wire

import (
	"testing"

	"github.com/weft-mesh/weft/identity"
)

// Each key of the allocation reads as what was written, and as nothing else. A label's
// value may contain "/", but an owner begins only after the last label's ";".
func TestKeysOfTheAllocationReadBack(t *testing.T) {
	const n, labels, owner = identity.Number(65537), "k8s:app=web;k8s:path=a/b;", "shop/web-0"
	for key, want := range map[string][4]string{
		IdentityIDKey(n):                {"65537", "", "", ""},
		IdentityUnusedKey(n):            {"", "65537", "", ""},
		IdentityTextKey(labels):         {"", "", labels, ""},
		IdentityOwnerKey(labels, owner): {"", "", labels, owner},
		IdentityOwnersPrefix(labels):    {},
		IdentityIDPrefix + "065537":     {},
		IdentityIDPrefix + "65537/x":    {},
		IdentityUnusedPrefix + "-1":     {},
		IdentityTextPrefix:              {},
		ClusterKey:                      {},
	} {
		var got [4]string
		if n, ok := ParseIdentityIDKey(key); ok {
			got[0] = string(NumberText(n))
		}
		if n, ok := ParseIdentityUnusedKey(key); ok {
			got[1] = string(NumberText(n))
		}
		if labels, owner, ok := ParseIdentityTextKey(key); ok {
			got[2], got[3] = labels, owner
		}
		if got != want {
			t.Errorf("%s reads as %q, want %q", key, got, want)
		}
	}
	if got, err := ParseNumberText(NumberText(n)); err != nil || got != n {
		t.Errorf("read %v, %v", got, err)
	}
	for _, bad := range []string{"", "01", "4294967296", "x"} {
		if n, err := ParseNumberText([]byte(bad)); err == nil {
			t.Errorf("read %q as %v", bad, n)
		}
	}
}
