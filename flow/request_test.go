package flow

import (
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseRequest(t *testing.T) {
	for _, test := range []struct {
		query, want, err string
	}{
		{query: "", want: "last=0"},
		{query: "follow", want: "follow=true&last=0"},
		{query: "follow=1&last=20", want: "follow=true&last=20"},
		{query: "follow=false&last=-1&verdict=dropped", want: "last=-1&verdict=DROPPED"},
		{query: "not=verdict%3Dforwarded&not=to-port%3D53%26protocol%3Dudp&verdict=dropped", want: "last=0&not=verdict%3DFORWARDED&not=protocol%3DUDP%26to-port%3D53&verdict=DROPPED"},
		{query: "not=", err: "not is a filter"},
		{query: "not=verdict%3Dno", err: "not filter verdict"},
		{query: "not=not%3Dverdict", err: `there is no filter "not"`},
		{query: "follow=maybe", err: `follow is true or false, not "maybe"`},
		{query: "last=few", err: `last is a number of flows, not "few"`},
		{query: "verdict=no", err: "filter verdict"},
	} {
		query, err := url.ParseQuery(test.query)
		if err != nil {
			t.Fatal(err)
		}
		before := query.Encode()
		r, err := ParseRequest(query)
		if test.err != "" {
			if err == nil || !strings.Contains(err.Error(), test.err) {
				t.Errorf("%s: got %v, want …%s…", test.query, err, test.err)
			}
			continue
		}
		if err != nil || r.Values().Encode() != test.want {
			t.Errorf("%s: got %s, %v, want %s", test.query, r.Values().Encode(), err, test.want)
		}
		back, err := ParseRequest(r.Values())
		if diff := cmp.Diff(r, back, plain); err != nil || diff != "" {
			t.Errorf("%s reads back as %v, %v", test.query, diff, err)
		}
		if query.Encode() != before {
			t.Errorf("%s: the caller's query became %s", before, query.Encode())
		}
	}
}

// FuzzParseRequest checks that whatever is accepted reads back the same.
func FuzzParseRequest(f *testing.F) {
	f.Add("follow&last=20&verdict=dropped")
	f.Add("follow=false&last=-1&not=verdict%3Dforwarded&not=to-port%3D53%26protocol%3Dudp")
	f.Add("last=+3&not=since%3D5m&pod=a/b/c")
	f.Fuzz(func(t *testing.T, text string) {
		query, err := url.ParseQuery(text)
		if err != nil {
			return
		}
		r, err := ParseRequest(query)
		if err != nil {
			return
		}
		back, err := ParseRequest(r.Values())
		if err != nil {
			t.Fatalf("%q reads back as %v", r.Values().Encode(), err)
		}
		if diff := cmp.Diff(r, back, plain); diff != "" {
			t.Fatal(diff)
		}
	})
}
