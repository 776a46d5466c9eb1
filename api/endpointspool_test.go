package api

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRemovalsWaitInASpool(t *testing.T) {
	spool := EndpointSpool(filepath.Join(t.TempDir(), "cni"))
	none := func(r EndpointRequest) error {
		t.Errorf("found %+v", r)
		return nil
	}
	if err := spool.Each(none); err != nil {
		t.Error(err)
	}
	web := EndpointRequest{Namespace: "shop", Name: "web", UID: "one", Container: "c/1", Interface: "eth0"}
	other := web
	other.Container = "c/2"
	for _, r := range []EndpointRequest{web, web, other} {
		if err := spool.Put(r); err != nil {
			t.Fatal(err)
		}
	}
	for _, wrong := range []EndpointRequest{{Namespace: "shop", Name: "web"}, {Namespace: "../x", Name: "web", Container: "c"}} {
		if err := spool.Put(wrong); err == nil {
			t.Errorf("took %+v", wrong)
		}
	}
	// What fails stays, and the others go on.
	var seen []string
	err := spool.Each(func(r EndpointRequest) error {
		seen = append(seen, r.Container)
		if r.Container == "c/1" {
			return errors.New("no memory")
		}
		return nil
	})
	if len(seen) != 2 || err == nil || !strings.Contains(err.Error(), "shop/web") {
		t.Errorf("saw %v, %v", seen, err)
	}
	if err := spool.Forget(web); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := spool.Forget(web); err != nil {
			t.Error(err)
		}
	}
	// A crash may leave a file that was not written to its end.
	for name, text := range map[string]string{".new-1.json": "{", "half.json": "{", "nameless.json": "{}", "whole-pod.json": `{"namespace":"shop","name":"web"}`, "README": "x"} {
		if err := os.WriteFile(filepath.Join(string(spool), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := spool.Each(none); err == nil || strings.Count(err.Error(), "its pod keeps its network") != 3 || !strings.Contains(err.Error(), "half.json") {
		t.Errorf("of what cannot be read it says %v", err)
	}
	if err := spool.Each(none); err != nil {
		t.Errorf("it says it again: %v", err)
	}
	if aside, err := os.ReadDir(filepath.Join(string(spool), "damaged")); err != nil || len(aside) != 3 {
		t.Errorf("put aside %v, %v", aside, err)
	}
}
