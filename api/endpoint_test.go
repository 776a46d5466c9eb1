package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

// Every mistake of a request is named at once.
func TestARequestForAPodsNetworkIsChecked(t *testing.T) {
	good := EndpointRequest{
		Namespace: "shop", Name: "web-0.db", UID: "3f6a0c1e-7d2b", Container: "c1", Netns: "/run/netns/x", Interface: "eth0",
		Addresses: []netip.Addr{netip.MustParseAddr("10.1.1.9"), netip.MustParseAddr("fd00:10:1:1::9")},
	}
	if err := good.Validate(); err != nil {
		t.Errorf("a good one: %v", err)
	}
	bad := EndpointRequest{
		Namespace: "Shop", Name: "../web", UID: "a b", Container: "\x00", Netns: "run/netns/x", Interface: "a/b",
		Addresses: []netip.Addr{netip.MustParseAddr("fe80::1%eth0"), netip.MustParseAddr("::ffff:10.1.1.9")},
	}
	err := bad.Validate()
	var refusal *Error
	if !errors.As(err, &refusal) || refusal.Status != http.StatusUnprocessableEntity {
		t.Fatalf("a bad one: %v", err)
	}
	for _, want := range []string{"namespace", "name \"../web\"", "uid", "container", "netns", "interface", "2 addresses are more than one of each", "fe80::1%eth0 is not one", "::ffff:10.1.1.9 is not one"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %s", err, want)
		}
	}
	for name, text := range map[string]string{
		"an unknown field": `{"namespace":"shop","name":"web","node":"x"}`, "two requests": `{"namespace":"shop","name":"web"}{}`, "none": ``, "a list": `[]`,
		"a long one":                      `{"namespace":"shop","name":"web","uid":"` + strings.Repeat("x", maxEndpointRequest) + `"}`,
		"netns, not in its shortest form": `{"namespace":"shop","name":"web","netns":"/run/netns/../../etc"}`, "loopback": `{"namespace":"shop","name":"web","interface":"lo"}`,
	} {
		if _, err := ReadEndpointRequest(strings.NewReader(text)); !errors.As(err, &refusal) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What is accepted names one file in the agent's folder, and reads back the same.
func FuzzReadEndpointRequest(f *testing.F) {
	for _, seed := range []string{
		`{"namespace":"shop","name":"web-1"}`,
		`{"namespace":"shop","name":"web-0.db","uid":"u","container":"c","netns":"/run/netns/x","interface":"eth0","addresses":["10.1.1.9"]}`,
		`{"namespace":"a_b","name":"c"}`, `{"namespace":"shop","name":".."}`, `{"addresses":["x"]}`, `{} x`, `null`, "",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := ReadEndpointRequest(bytes.NewReader(text))
		if err != nil {
			return
		}
		if strings.ContainsAny(r.Namespace+r.Name, "/_\x00") || strings.Contains(r.Name, "..") || r.Namespace == "" || r.Name == "" || strings.Contains(r.Netns, "/../") || strings.ContainsAny(r.Interface, "/ ") {
			t.Errorf("accepted %+v", r)
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ReadEndpointRequest(bytes.NewReader(again)); err != nil || !reflect.DeepEqual(back, r) {
			t.Errorf("%+v reads back as %+v, %v", r, back, err)
		}
	})
}
