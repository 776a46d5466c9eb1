package registry

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/store"
	"github.com/weft-mesh/weft/store/storetest"
	"github.com/weft-mesh/weft/wire"
)

func TestDryRunOfADeletionDeletesNothing(t *testing.T) {
	r, s := fixture(t)
	apply(t, r, pod+"---\n"+webService)
	before := s.Dump("")
	result, err := r.DeleteManifest(t.Context(), []byte(pod+"---\n"+webService+"---\n"+cnp), api.ManifestOptions{DryRun: true})
	if err != nil || !result.DryRun || summary(result) != "shop/web-1 deleted, shop/web deleted, default/only-frontend absent" {
		t.Errorf("%+v, %v", result, err)
	}
	if !slices.Equal(before, s.Dump("")) {
		t.Error("something was deleted")
	}
}

// A store that does not answer may have made the change.
func TestAnUnconfirmedChangeSaysSo(t *testing.T) {
	r, s := fixture(t)
	apply(t, r, pod)
	s.Fail(func(call, _ string) error {
		if call == "commit" {
			return fmt.Errorf("deadline exceeded: %w", store.ErrUnavailable)
		}
		return nil
	})
	_, applied := r.Apply(t.Context(), []byte(webService), api.ManifestOptions{})
	_, deleted := r.Delete(t.Context(), "pod", "shop", "web-1", api.ManifestOptions{})
	for _, err := range []error{applied, deleted} {
		var refused *api.Error
		if !errors.As(err, &refused) || refused.Status != http.StatusServiceUnavailable || !strings.Contains(refused.Message, "may or may not have been made") || refused.Hint == "" {
			t.Errorf("%v", err)
		}
	}
}

func TestADamagedObjectCanBeReplaced(t *testing.T) {
	r, s := fixture(t)
	for key, text := range map[string]string{wire.ObjectKey("pods", "shop", "web-1"): pod, wire.ObjectKey("services", "shop", "web"): webService} {
		if err := store.Write(t.Context(), s, store.Put(key, []byte("{"))); err != nil {
			t.Fatal(err)
		}
		_, err := r.Apply(t.Context(), []byte(text), api.ManifestOptions{})
		var refused *api.Error
		if !errors.As(err, &refused) || len(refused.Problems) != 1 || !strings.Contains(refused.Problems[0].Message, "is damaged in the store (unexpected end of JSON input); delete it with `weft delete`") {
			t.Errorf("applied over it: %v", err)
		}
		if _, err := r.DeleteManifest(t.Context(), []byte(text), api.ManifestOptions{}); err != nil {
			t.Error(err)
		}
		apply(t, r, text)
	}
}

func TestStoreFailuresAreSentences(t *testing.T) {
	r, s := fixture(t)
	s.Fail(func(call, _ string) error {
		if call == "commit" {
			return fmt.Errorf("etcdserver: mvcc: database space exceeded: %w", store.ErrFull)
		}
		return nil
	})
	_, err := r.Apply(t.Context(), []byte(webService), api.ManifestOptions{})
	var refused *api.Error
	if !errors.As(err, &refused) || refused.Status != http.StatusInsufficientStorage || !strings.Contains(refused.Hint, "make space") {
		t.Error(err)
	}
}

// Of a thousand mistakes, a hundred are reported, and that there are more.
func TestManyMistakes(t *testing.T) {
	var refused *api.Error
	r := New(storetest.New(), Config{Cluster: "east", ServiceCIDR: netip.MustParsePrefix("10.101.0.0/16")})
	pod := func(namespace, name string) string {
		return fmt.Sprintf("---\n{apiVersion: v1, kind: Pod, metadata: {namespace: %q, name: %q}}\n", namespace, name)
	}
	x, escaped := strings.Repeat("x", 20000), strings.Repeat("<", 1500)
	for name, text := range map[string]string{
		"in one list":                  "[" + strings.Repeat("0,", 1000) + "0]",
		"in many documents":            strings.Repeat("0\n---\n", 1000),
		"of long names":                strings.Repeat(pod("shop", x), 110),
		"of long namespaces":           strings.Repeat(pod(x, "web"), 110),
		"that JSON escapes":            strings.Repeat(pod("shop", escaped), 110),
		"that JSON escapes everywhere": strings.Repeat(pod(escaped, escaped), 110),
	} {
		_, err := r.Apply(t.Context(), []byte(text), api.ManifestOptions{})
		if !errors.As(err, &refused) || len(refused.Problems) != maxProblems+1 || !strings.Contains(refused.Problems[maxProblems].Message, "more mistakes") {
			t.Errorf("%s: %+v", name, err)
		}
		if answer, err := json.Marshal(refused); len(answer) > api.MaxErrorBytes || err != nil {
			t.Errorf("%s: an answer of %d bytes, %v", name, len(answer), err)
		}
	}
}

// A watch tells what was deleted while the store could not tell it, also of objects that were
// applied after the watch had begun.
func TestAWatchTellsDeletionsOfAGap(t *testing.T) {
	r, s := fixture(t)
	const namespace = "apiVersion: v1\nkind: Namespace\nmetadata: {name: %s}\n"
	apply(t, r, fmt.Sprintf(namespace, "kept"))
	var got []string
	ended := errors.New("all seen")
	err := r.Watch(t.Context(), "namespaces", "", func(ev api.WatchEvent) error {
		switch got = append(got, strings.TrimSpace(ev.Type+" "+ev.Name)); len(got) {
		case 2:
			apply(t, r, fmt.Sprintf(namespace, "late"))
		case 3:
			if _, err := r.Delete(t.Context(), "namespaces", "", "late", api.ManifestOptions{}); err != nil {
				t.Error(err)
			}
			s.Compact()
		case 5:
			return ended
		}
		return nil
	})
	if want := []string{"put kept", "synced", "put late", "delete late", "put kept"}; !errors.Is(err, ended) || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}
