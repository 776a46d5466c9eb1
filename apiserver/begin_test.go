package apiserver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-mesh/weft/api"
)

func TestWhereAClusterIsKnownNoStoreBeginsAgain(t *testing.T) {
	n2 := []other{{"https://192.0.2.2:7443", "n2"}}
	for name, test := range map[string]struct {
		known, ours bool
		others      []other
		want        string // part of the refusal; "": it may begin
	}{
		"a new machine":                       {false, false, nil, ""},
		"the store alone is lost":             {true, true, nil, ""}, // nodes hold what they have
		"everything is lost":                  {true, false, nil, "`weft restore FILE`"},
		"everything is lost, and others live": {true, false, n2, "its API server n2 at https://192.0.2.2:7443 answers"},
		"the store is lost, and others live":  {true, true, n2, "`weft server replace NAME`"},
	} {
		err := mayBegin(beginning{cluster: "east", dataDir: "/data", admin: "/etc/weft/admin.conf", known: test.known, ours: test.ours, others: test.others})
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
	}
}

// An API server whose data folder is lost does not begin a second store of its cluster, and
// leaves the folder as it is. Once the operator's context is moved away, it is a new cluster.
func TestALostStoreDoesNotBeginAgain(t *testing.T) {
	conf := config(t)
	start(t, conf).stop()
	if err := os.RemoveAll(conf.DataDir); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(conf.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Run(t.Context(), conf); err == nil || !strings.Contains(err.Error(), "weft restore FILE") {
			t.Fatal("started:", err)
		}
		if _, err := os.Stat(filepath.Join(conf.DataDir, "pki")); err == nil {
			t.Error("a new authority was made")
		}
	}
	if err := os.Rename(conf.AdminConfig, conf.AdminConfig+".old"); err != nil {
		t.Fatal(err)
	}
	start(t, conf)
	if _, err := api.LoadConfig(conf.AdminConfig); err != nil {
		t.Error(err)
	}
}
