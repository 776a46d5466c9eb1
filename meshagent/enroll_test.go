package meshagent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/statefile"
)

// enrolling returns the files of a node that joins by token, and its questions.
func enrolling(t *testing.T, answer func(b api.Bootstrap, token, node string) (*api.JoinBundle, error)) *enrollment {
	t.Helper()
	dir := t.TempDir()
	return &enrollment{
		state: filepath.Join(dir, "state"), join: filepath.Join(dir, "join.yaml"), token: filepath.Join(dir, "token"), bootstrap: filepath.Join(dir, "bootstrap.yaml"), node: "n1",
		ask: func(_ context.Context, b api.Bootstrap, token, node string) (*api.JoinBundle, error) {
			return answer(b, token, node)
		},
		log: slog.New(slog.DiscardHandler),
	}
}

func put(t *testing.T, path string, v any) {
	t.Helper()
	text, ok := v.(string)
	if !ok {
		b, err := yaml.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// The files appear one after the other, and API servers come and go meanwhile.
func TestAnAgentWaitsUntilItMayJoin(t *testing.T) {
	want := testBundle(t, "n1")
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		e := enrolling(t, func(b api.Bootstrap, token, node string) (*api.JoinBundle, error) {
			if asked++; asked == 1 {
				return nil, errors.New("nobody answers")
			}
			if token != "secret" || node != "n1" || len(b.Servers) != 1 {
				t.Errorf("asked %v for %q with %q", b.Servers, node, token)
			}
			return want, nil
		})
		done := make(chan error, 1)
		go func() { done <- e.await(t.Context()) }()
		time.Sleep(time.Minute)
		put(t, e.bootstrap, api.Bootstrap{Servers: []string{"https://192.0.2.1:7443"}, CA: want.CA})
		time.Sleep(time.Minute)
		if asked != 0 {
			t.Errorf("asked %d times without a token", asked)
		}
		put(t, e.token, "secret\n")
		if err := <-done; err != nil || asked != 2 {
			t.Fatalf("joined: %v, after %d questions", err, asked)
		}
		if why := e.lacking(time.Now()); why != "" {
			t.Errorf("the bundle cannot do: %s", why)
		}
		info, err := os.Stat(e.join)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("the bundle's file: %v, %v", info, err)
		}
	})
}

func TestWhenAnAgentAsksForAnotherBundle(t *testing.T) {
	mine, other := testBundle(t, "n1"), testBundle(t, "n2")
	e := enrolling(t, nil)
	for name, c := range map[string]struct {
		join, bootstrap any
		after           time.Duration
		want            string
	}{
		"it may do":                         {mine, api.Bootstrap{Servers: []string{"https://192.0.2.1:7443"}, CA: mine.CA}, 0, ""},
		"nobody says where the servers are": {mine, nil, 0, ""},
		"the file is damaged":               {"join: [", nil, 0, "it is damaged"},
		"the file is empty":                 {"", nil, 0, "it is damaged"},
		"expired":                           {mine, nil, 10 * 365 * 24 * time.Hour, "expired"},
		"another node's":                    {other, nil, 0, "node n2"},
		"another cluster":                   {mine, api.Bootstrap{Servers: []string{"https://192.0.2.1:7443"}, CA: other.CA}, 0, "no longer there"},
		"a list that cannot be read":        {mine, "servers: 1", 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			put(t, e.join, c.join)
			os.Remove(e.bootstrap)
			if c.bootstrap != nil {
				put(t, e.bootstrap, c.bootstrap)
			}
			why := e.lacking(time.Now().Add(c.after))
			if (why == "") != (c.want == "") || !strings.Contains(why, c.want) {
				t.Errorf("it lacks %q, want %q", why, c.want)
			}
		})
	}
	os.Remove(e.join)
	if why := e.lacking(time.Now()); why != "there is none" {
		t.Errorf("without a file it lacks %q", why)
	}
}

// A damaged bundle is no reason to ask while there is a copy. Without one, it is kept and
// another one is asked for.
func TestADamagedBundleIsAskedForAgain(t *testing.T) {
	want, asked := testBundle(t, "n1"), 0
	e := enrolling(t, func(api.Bootstrap, string, string) (*api.JoinBundle, error) {
		asked++
		return want, nil
	})
	put(t, e.token, "secret")
	put(t, e.bootstrap, api.Bootstrap{Servers: []string{"https://192.0.2.1:7443"}, CA: want.CA})
	put(t, e.join, "join: [")
	if err := os.MkdirAll(e.state, 0o700); err != nil {
		t.Fatal(err)
	}
	put(t, spareBundle(e.state), want)
	if why := e.lacking(time.Now()); why != "" {
		t.Errorf("with a copy it lacks %q", why)
	}
	put(t, spareBundle(e.state), "join: [")
	if err := e.await(t.Context()); err != nil || asked != 1 {
		t.Fatalf("%v, asked %d times", err, asked)
	}
	if why := e.lacking(time.Now()); why != "" {
		t.Errorf("it lacks %q", why)
	}
	kept := statefile.Damages(e.state)
	if len(kept) != 1 {
		t.Fatalf("kept %v", kept)
	}
	if was, err := os.ReadFile(kept[0].Aside); err != nil || string(was) != "join: [" {
		t.Errorf("kept %q, %v", was, err)
	}
}

// A node that is registered in another way by now starts with the bundle that says so; while
// nobody answers, with the one that it has.
func TestAnAgentStartsAsItIsRegistered(t *testing.T) {
	was := testBundle(t, "n1")
	var now *api.JoinBundle
	e := enrolling(t, func(api.Bootstrap, string, string) (*api.JoinBundle, error) {
		if now == nil {
			return nil, errors.New("nobody answers")
		}
		return now, nil
	})
	put(t, e.join, was)
	put(t, e.token, "secret")
	put(t, e.bootstrap, api.Bootstrap{Servers: []string{"https://192.0.2.1:7443"}, CA: was.CA})
	starts := func(want netip.Addr) {
		t.Helper()
		if err := e.await(t.Context()); err != nil {
			t.Fatal(err)
		}
		var is api.JoinBundle
		text, err := os.ReadFile(e.join)
		if err != nil || yaml.Unmarshal(text, &is) != nil || is.Addresses[0] != want {
			t.Errorf("it starts at %v, %v; want %v", is.Addresses, err, want)
		}
	}
	starts(was.Addresses[0])
	moved := *was
	moved.Addresses = []netip.Addr{netip.MustParseAddr("192.0.2.7")}
	now = &moved
	starts(moved.Addresses[0])
}

func TestEnrollmentNeedsBothFiles(t *testing.T) {
	c := Defaults()
	c.Token = "/var/run/secrets/token"
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "give both") {
		t.Errorf("a token alone: %v", err)
	}
	c.Bootstrap = "bootstrap.yaml"
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "absolute path") {
		t.Errorf("a relative path: %v", err)
	}
	c.Bootstrap = "/etc/weft/bootstrap.yaml"
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}
