package registry

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/wire"
)

func TestWhoseAnObjectBecomes(t *testing.T) {
	const apply, files, kubernetes = api.OwnerApply, "manifests", "kubernetes"
	for _, c := range []struct {
		name     string
		by, was  string
		same     bool
		takeOver bool
		owner    string
		may      bool
	}{
		{"its own", files, files, false, false, files, true},
		{"an applied one that differs", files, apply, false, false, apply, false},
		{"an applied one that is the same goes to the source", files, apply, true, false, files, true},
		{"another source's that differs", files, kubernetes, false, false, kubernetes, false},
		{"another source's that is the same stays where it is", files, kubernetes, true, false, kubernetes, true},
		{"a source's, by hand", apply, files, false, false, files, false},
		{"a source's, by hand and the same", apply, files, true, false, files, true},
		{"a source's, taken over", apply, files, false, true, apply, true},
		{"a source's, the same and taken over", apply, files, true, true, apply, true},
	} {
		if owner, may := (writer{owner: c.by, takeOver: c.takeOver}).owns(c.was, c.same); owner != c.owner || may != c.may {
			t.Errorf("%s: %s, %v", c.name, owner, may)
		}
	}
}

// hand gives a set to the registry and returns what changed and what was refused.
func hand(t *testing.T, s *Owned, complete bool, manifests ...string) (changed, refused string, kept int) {
	t.Helper()
	set := Set{Complete: complete}
	for i, m := range manifests {
		set.Units = append(set.Units, Unit{Name: fmt.Sprintf("%c.yaml", 'a'+i), Manifest: []byte(m)})
	}
	out, err := s.Sync(t.Context(), set)
	if err != nil {
		t.Fatal(err)
	}
	var problems []string
	for _, p := range out.Refused {
		problems = append(problems, p.String())
	}
	return summary(&api.ApplyResult{Objects: out.Changed}), strings.Join(problems, "\n"), out.Kept
}

// owners lists the objects in the store with their owners.
func owners(t *testing.T, s store.Store) string {
	t.Helper()
	kvs, _, err := s.List(t.Context(), wire.ObjectsPrefix)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, kv := range kvs {
		_, _, name, _ := wire.ParseObjectKey(kv.Key)
		all = append(all, name+"="+api.OwnerOf(kv.Value))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

const files, kubernetes = api.OwnerManifests, "kubernetes"

func namespace(name string) string {
	return "apiVersion: v1\nkind: Namespace\nmetadata: {name: " + name + "}\n"
}

func TestASourceRemovesOnlyItsOwn(t *testing.T) {
	r, s := fixture(t)
	apply(t, r, namespace("dev"))
	hand(t, r.Owned(kubernetes), true, namespace("kube"))
	own := r.Owned(files)
	if changed, refused, _ := hand(t, own, true, pod+"---\n"+webService, cnp); changed != "shop/web-1 created, shop/web created, default/only-frontend created" || refused != "" {
		t.Fatalf("first: %s; %s", changed, refused)
	}
	before := s.Revision()
	if changed, _, _ := hand(t, own, true, pod+"---\n"+webService, cnp); changed != "" || s.Revision() != before {
		t.Errorf("again: %q, revision %d after %d", changed, s.Revision(), before)
	}
	if changed, _, kept := hand(t, own, false, cnp); changed != "" || kept != 2 {
		t.Errorf("not complete: %q, %d kept", changed, kept)
	}
	if changed, _, kept := hand(t, own, true, cnp); changed != "shop/web-1 deleted, shop/web deleted" || kept != 0 {
		t.Errorf("complete: %q, %d kept", changed, kept)
	}
	if got, want := owners(t, s), "dev=apply kube=kubernetes only-frontend=manifests"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if kvs, _, _ := s.List(t.Context(), wire.ServiceIPsPrefix); len(kvs) != 0 {
		t.Errorf("the service's address is kept: %v", kvs)
	}
	if changed, _, _ := hand(t, own, true); changed != "default/only-frontend deleted" {
		t.Errorf("complete and empty: %q", changed)
	}
}

func TestNobodyOverwritesAnotherOwner(t *testing.T) {
	r, s := fixture(t)
	labelled := strings.Replace(namespace("shop"), "{name: shop}", "{name: shop, labels: {tier: a}}", 1)
	apply(t, r, namespace("shop"))
	own := r.Owned(files)
	if changed, refused, _ := hand(t, own, true, labelled+"---\n"+pod, cnp); changed != "default/only-frontend created" ||
		!strings.Contains(refused, "a.yaml: document 1, Namespace shop: was applied with `weft apply` and differs") {
		t.Errorf("%q; %s", changed, refused)
	}
	if got, want := owners(t, s), "only-frontend=manifests shop=apply"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	// What is applied and the same goes to the source.
	apply(t, r, labelled)
	if changed, refused, _ := hand(t, own, true, labelled+"---\n"+pod, cnp); changed != "shop configured, shop/web-1 created" || refused != "" {
		t.Errorf("%q; %s", changed, refused)
	}
	if got := summary(apply(t, r, labelled)); got != "shop unchanged" {
		t.Error(got)
	}
	if _, refused, _ := hand(t, r.Owned(kubernetes), true, namespace("shop")); !strings.Contains(refused, `belongs to the source "manifests"`) {
		t.Error(refused)
	}
	for name, do := range map[string]func(api.ManifestOptions) error{
		"apply": func(o api.ManifestOptions) error {
			_, err := r.Apply(t.Context(), []byte(namespace("shop")), o)
			return err
		},
		"delete by name": func(o api.ManifestOptions) error {
			_, err := r.Delete(t.Context(), "pod", "shop", "web-1", o)
			return err
		},
		"delete manifest": func(o api.ManifestOptions) error { _, err := r.DeleteManifest(t.Context(), []byte(cnp), o); return err },
	} {
		before := s.Revision()
		var refusal *api.Error
		if err := do(api.ManifestOptions{}); !errors.As(err, &refusal) || !strings.Contains(err.Error(), `belongs to the source "manifests": change it there, or repeat with --take-over`) || s.Revision() != before {
			t.Errorf("%s: %v", name, err)
		}
		if err := do(api.ManifestOptions{TakeOver: true}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got, want := owners(t, s), "shop=apply"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestAUnitIsAcceptedWholeOrNotAtAll(t *testing.T) {
	r, s := fixture(t)
	own := r.Owned(files)
	hand(t, own, true, webService, cnp)
	misspelt := strings.Replace(webService, "selector:", "selektor:", 1)
	elsewhere := strings.Replace(pod, "n1", "n9", 1)
	// The service keeps what it was, and the rest goes on, deletions too: it is known what
	// the first file holds.
	changed, refused, kept := hand(t, own, true, misspelt+"---\n"+namespace("shop"), elsewhere+"---\n"+namespace("dev"), namespace("qa"))
	if changed != "qa created, default/only-frontend deleted" || kept != 0 {
		t.Errorf("%q, %d kept", changed, kept)
	}
	for _, want := range []string{"a.yaml: document 1, Service shop/web: unknown field", `b.yaml: document 1, Pod shop/web-1: spec.nodeName "n9"`} {
		if !strings.Contains(refused, want) {
			t.Errorf("no %q in:\n%s", want, refused)
		}
	}
	if got, want := owners(t, s), "qa=manifests web=manifests"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	// What cannot be parsed might hold anything: nothing is deleted.
	for _, broken := range []string{"kind: [", "apiVersion: v1\nmetadata: {name: qa}\n", "---\n--- x\n", "just a text\n"} {
		changed, refused, kept := hand(t, own, true, broken, namespace("dev"))
		if refused == "" || kept != 2 || strings.Contains(changed, "deleted") {
			t.Errorf("%q: %q; %s; %d kept", broken, changed, refused, kept)
		}
		hand(t, own, true, webService, namespace("qa"))
	}
	if changed, refused, _ := hand(t, own, true, webService, namespace("qa"), webService); changed != "" || !strings.Contains(refused, "c.yaml: document 1, Service shop/web: is in a.yaml too") {
		t.Errorf("%q; %s", changed, refused)
	}
}

func TestASourceKeepsANamespaceInUse(t *testing.T) {
	r, s := fixture(t)
	own := r.Owned(files)
	hand(t, own, true, namespace("shop"), cnp)
	apply(t, r, pod)
	changed, refused, _ := hand(t, own, true)
	if changed != "default/only-frontend deleted" || refused != "Namespace shop: still holds Pod web-1; delete them first or with the same manifest" {
		t.Errorf("%q; %s", changed, refused)
	}
	if got, want := owners(t, s), "shop=manifests web-1=apply"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// A damaged object keeps a source from nothing but its own file.
func TestASourceAndADamagedObject(t *testing.T) {
	r, s := fixture(t)
	own := r.Owned(files)
	if err := store.Write(t.Context(), s, store.Put(wire.ObjectKey("namespaces", "", "shop"), []byte("{"))); err != nil {
		t.Fatal(err)
	}
	if changed, refused, _ := hand(t, own, true, namespace("shop"), cnp); changed != "default/only-frontend created" || !strings.Contains(refused, "a.yaml: document 1, Namespace shop: is damaged in the store") {
		t.Errorf("%q; %s", changed, refused)
	}
}

// What a cluster prints can be applied elsewhere: the owner is the store's to say.
func TestPrintedOwnersAreNotApplied(t *testing.T) {
	r, s := fixture(t)
	hand(t, r.Owned(files), true, namespace("shop")+"---\n"+cnp)
	printed := "["
	for _, key := range []string{wire.ObjectKey("namespaces", "", "shop"), wire.ObjectKey("ciliumnetworkpolicies", "default", "only-frontend")} {
		kv, err := s.Get(t.Context(), key)
		if err != nil {
			t.Fatal(err)
		}
		printed += string(kv.Value) + ","
	}
	other, elsewhere := fixture(t)
	apply(t, other, strings.TrimSuffix(printed, ",")+"]")
	if got, want := owners(t, elsewhere), "only-frontend=apply shop=apply"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func FuzzSyncNames(f *testing.F) {
	f.Add([]byte(pod + "---\n" + webService))
	f.Add([]byte("# nothing\n---\n" + cnp))
	f.Add([]byte("- a\n"))
	// Whatever a unit can be read as, its objects are among those that are kept; else
	// nothing is deleted.
	f.Fuzz(func(t *testing.T, text []byte) {
		units, owned := []Unit{{Name: "a.yaml", Manifest: text}}, &Owned{owner: api.OwnerManifests}
		keys, readable := owned.named(units)
		objects, _ := owned.readUnits(units)
		for _, o := range objects {
			if !keys[o.key()] && readable {
				t.Errorf("%s would be deleted", o.key())
			}
		}
	})
}
