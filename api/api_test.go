package api

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestConfigReadsBackWhatItSaves(t *testing.T) {
	path := filepath.Join(t.TempDir(), "weft", "config")
	c := &Config{}
	c.Set(Context{Name: "east", Server: "https://e:7443", Key: "k"})
	c.Set(Context{Name: "west", Server: "https://w:7443"})
	c.Set(Context{Name: "east", Server: "https://e:7444", Key: "k"})
	if err := c.Save(path); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error(info.Mode(), err)
	}
	t.Setenv("WEFT_CONFIG", path)
	again, err := LoadConfig("")
	if err != nil {
		t.Fatal(err)
	}
	if x, err := again.Context("east"); err != nil || x.Server != "https://e:7444" || len(again.Contexts) != 2 {
		t.Errorf("%+v %v", again, err)
	}
	if _, err := again.Context("north"); err == nil || !strings.Contains(err.Error(), "choose from east, west") {
		t.Error(err)
	}
	if _, err := again.Context(""); err == nil || !strings.Contains(err.Error(), "choose one with -c") {
		t.Error(err)
	}
	for _, name := range []string{"", "east"} {
		if _, err := new(Config).Context(name); err == nil || !strings.Contains(err.Error(), "the contexts file has no contexts: add") {
			t.Errorf("context %q of none: %v", name, err)
		}
	}
	again.Current = "west"
	if x, err := again.Context(""); err != nil || x.Name != "west" {
		t.Error(x, err)
	}
}

func TestConfigRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config")
	if _, err := LoadConfig(path); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "admin.conf") {
		t.Error(err)
	}
	for text, want := range map[string]string{
		"contexts: [{name: a, sever: b}]": "sever",
		"contexts: [{name: a}]":           "context 1 needs a name and a server",
		"contexts: {":                     "config",
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadConfig(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestClientRefusesBadContexts(t *testing.T) {
	for _, x := range []Context{{Name: "e", Server: "http://e:1"}, {Name: "e", Server: "https://e:1"}, {Name: "e", Server: "https://e:1", CA: "x"}} {
		if _, err := NewClient(x); err == nil || !strings.Contains(err.Error(), `context "e"`) {
			t.Error(err)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	for _, v := range []any{
		Invite{Key: "hidden", GossipKey: "hidden"}, &Invite{Key: "hidden"}, CiliumPeer{Key: "hidden"},
		JoinBundle{Key: "hidden", ServerKey: "hidden", GossipKey: "hidden"}, &JoinBundle{Key: "hidden"},
		Context{Name: "e", Key: "hidden"}, &Config{Contexts: []Context{{Key: "hidden"}}},
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
			if text := fmt.Sprintf(verb, v); strings.Contains(text, "hidden") {
				t.Errorf("%s of %T: %s", verb, v, text)
			}
		}
	}
}

func TestErrorsReadAsSentences(t *testing.T) {
	e := Invalid("correct it", "the manifest is refused:")
	e.Problems = []Problem{
		{Document: 2, Kind: "Pod", Namespace: "shop", Name: "web", Message: "spec.nodeName is missing"},
		{Message: "it is empty"},
	}
	if got, want := e.Error(), "the manifest is refused:\n  document 2, Pod shop/web: spec.nodeName is missing\n  it is empty"; got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// "context deadline exceeded" says nothing to an operator, whose contexts are something else.
func TestNoAnswerInTime(t *testing.T) {
	err := cause(&url.Error{Op: "Get", URL: "https://e:7443", Err: context.DeadlineExceeded})
	if err.Error() != "no answer in time" || !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
}
