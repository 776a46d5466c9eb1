package registry

import (
	"fmt"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/manifest"
	"github.com/weft-mesh/weft/wire"
)

func native(plural, name, rest string) Unit {
	ref := Ref{Plural: plural, Namespace: "default", Name: name}
	kind, _ := FindKind(plural)
	return Unit{Name: ref.Key(), Object: fmt.Appendf(nil, `{"apiVersion":%q,"kind":%q,"metadata":{"name":%q,"namespace":"default","uid":"uid-%s","creationTimestamp":"2026-01-02T03:04:05Z"},%s}`, kind.APIVersion, kind.Name, name, name, rest)}
}

const nativeService = `"spec":{"selector":{"app":"web"},"clusterIP":"10.101.0.%d","clusterIPs":["10.101.0.%d"],"ipFamilies":["IPv4"],"ports":[{"port":80,"protocol":"TCP"}]}`

// An update writes what has changed, at the cost of that, and tells each mistake with its unit.
func TestUpdate(t *testing.T) {
	r, s := fixture(t)
	owned := r.Owned(api.OwnerKubernetes)
	update := func(d Delta) (*Outcome, int) {
		t.Helper()
		calls := 0
		s.Fail(func(call, key string) error { calls++; return nil })
		defer s.Fail(nil)
		out, err := owned.Update(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		return out, calls
	}
	var all []Unit
	for i := range 200 {
		all = append(all, native(manifest.Services, fmt.Sprint("s", i), fmt.Sprintf(nativeService, 1+i, 1+i)))
	}
	if out, _ := update(Delta{Put: all}); len(out.Changed) != 200 || len(out.Refused) > 0 {
		t.Fatalf("%d changed, %v", len(out.Changed), out.Refused)
	}
	text, _ := s.Value(wire.ObjectKey(manifest.Services, "default", "s7"))
	if !strings.Contains(string(text), `"uid":"uid-s7"`) || !strings.Contains(string(text), "2026-01-02") || api.OwnerOf(text) != api.OwnerKubernetes {
		t.Errorf("stored: %s", text)
	}
	before := s.Revision()
	if out, _ := update(Delta{Put: all}); len(out.Changed) > 0 || s.Revision() != before {
		t.Errorf("the same again: %v, revision %d to %d", out.Changed, before, s.Revision())
	}
	// The address of one that is deleted is another's in the same update: it is Kubernetes'.
	out, calls := update(Delta{
		Put:    []Unit{native(manifest.Services, "new", fmt.Sprintf(nativeService, 1, 1)), native(manifest.Services, "far", strings.ReplaceAll(fmt.Sprintf(nativeService, 1, 1), "10.101", "10.99"))},
		Delete: []Ref{{manifest.Services, "default", "s0"}, {manifest.Services, "default", "never"}},
	})
	if len(out.Changed) != 2 || len(out.Refused) != 1 || out.Refused[0].File != wire.ObjectKey(manifest.Services, "default", "far") {
		t.Errorf("changed %v, refused %v", out.Changed, out.Refused)
	}
	if calls > 8 {
		t.Errorf("a small change takes %d calls", calls)
	}
	// What is not Kubernetes' stays.
	apply(t, r, "apiVersion: v1\nkind: Namespace\nmetadata: {name: mine}\n")
	if out, _ := update(Delta{Delete: []Ref{{manifest.Namespaces, "", "mine"}}}); len(out.Changed)+len(out.Refused) > 0 {
		t.Errorf("another's: %v, %v", out.Changed, out.Refused)
	}
	held, err := owned.Held(t.Context())
	if err != nil || len(held) != 200 {
		t.Errorf("%d held, %v", len(held), err)
	}
}
