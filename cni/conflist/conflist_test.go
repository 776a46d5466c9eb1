package conflist

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func config(t *testing.T) Config {
	t.Helper()
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("first"), 0o700); err != nil {
		t.Fatal(err)
	}
	return Config{ConfDir: filepath.Join(dir, "net.d"), BinDir: filepath.Join(dir, "bin"), Program: program, Socket: "/run/weft/agent.sock", Spool: "/var/lib/weft/cni"}
}

func (c Config) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(c.ConfDir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.ConfDir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (c Config) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.ConfDir, name))
	if err != nil {
		return ""
	}
	return string(text)
}

const fresh = `{
  "cniVersion": "1.0.0",
  "cniVersions": [
    "1.0.0",
    "1.1.0"
  ],
  "name": "weft",
  "plugins": [
    {
      "type": "weft",
      "socket": "/run/weft/agent.sock",
      "spool": "/var/lib/weft/cni",
      "capabilities": {
        "ips": true
      }
    }
  ]
}
`

// ours is the plugin's part as it should be.
const part = `{"type":"weft","socket":"/run/weft/agent.sock","spool":"/var/lib/weft/cni","custom":1}`

func TestTheNetworksConfiguration(t *testing.T) {
	for _, c := range []struct {
		name   string
		files  map[string]string
		want   string // of our file; "same": as it was
		failed string
	}{
		{name: "nothing there", want: fresh},
		{name: "beside others that come later", files: map[string]string{"10-calico.conflist": `{"name":"k","plugins":[{"type":"calico"}]}`, "README": "x", "00-off.conflist.bak": "{"}, want: fresh},
		{name: "ours", files: map[string]string{File: fresh}, want: "same"},
		{name: "somebody has chained a plugin into it", files: map[string]string{File: `{"cniVersion":"0.4.0","name":"k8s","x":1,"plugins":[` + part + `,{"type":"istio-cni"}]}`}, want: "same"},
		{name: "the agent's socket has moved, and others are chained", files: map[string]string{File: `{"name":"k8s","x":1,"plugins":[{"type":"weft","socket":"/old","custom":{"a":1}},{"type":"portmap","capabilities":{"portMappings":true}}]}`},
			want: `{"name":"k8s","plugins":[{"custom":{"a":1},"socket":"/run/weft/agent.sock","spool":"/var/lib/weft/cni","type":"weft"},{"type":"portmap","capabilities":{"portMappings":true}}],"x":1}`},
		{name: "damaged", files: map[string]string{File: "{"}, want: "same", failed: "cannot be read"},
		{name: "empty", files: map[string]string{File: ""}, want: "same", failed: "cannot be read"},
		{name: "without our plugin", files: map[string]string{File: `{"plugins":[{"type":"bridge"}]}`}, want: "same", failed: "no plugin of type weft"},
		{name: "plugins that are no list", files: map[string]string{File: `{"plugins":{}}`}, want: "same", failed: "cannot be read"},
		{name: "in a file of somebody else", files: map[string]string{"10-mine.conflist": `{"plugins":[` + part + `]}`}},
		{name: "in a file of one plugin", files: map[string]string{"10-mine.conf": part}},
		{name: "in a file of somebody else, for another agent", files: map[string]string{"10-mine.conflist": `{"plugins":[{"type":"weft","socket":"/old"}]}`}, failed: "10-mine.conflist names the socket /old"},
		{name: "another network comes first", files: map[string]string{"00-bridge.conf": `{"type":"bridge"}`}, want: fresh, failed: "00-bridge.conf, because it comes before 05-weft.conflist"},
		{name: "a damaged file comes first", files: map[string]string{"00-x.json": "{"}, want: fresh, failed: "00-x.json"},
		{name: "a plugin that calls others comes first", files: map[string]string{"00-multus.conf": `{"type":"multus-shim"}`}, want: fresh},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := config(t)
			for name, text := range c.files {
				conf.write(t, name, text)
			}
			for range 2 { // what is as it should be stays
				err := conf.InstallNetwork()
				if c.failed == "" && err != nil || c.failed != "" && (err == nil || !strings.Contains(err.Error(), c.failed)) {
					t.Errorf("error %v, want %q", err, c.failed)
				}
			}
			want := c.want
			if want == "same" {
				want = c.files[File]
			}
			if got := conf.read(t, File); got != want && squeezed(got) != squeezed(want) {
				t.Errorf("it is %s, want %s", got, want)
			}
			for name, text := range c.files {
				if name != File && conf.read(t, name) != text {
					t.Errorf("%s was changed", name)
				}
			}
		})
	}
}

// squeezed is JSON without blanks.
func squeezed(text string) string {
	var v any
	if json.Unmarshal([]byte(text), &v) != nil {
		return text
	}
	out, _ := json.Marshal(v)
	return string(out)
}

func TestTheProgramIsCopiedWhole(t *testing.T) {
	conf := config(t)
	path := filepath.Join(conf.BinDir, Type)
	content := func() string {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	for range 2 {
		if err := conf.InstallProgram(); err != nil {
			t.Fatal(err)
		}
	}
	was, err := os.Stat(path)
	if err != nil || was.Mode().Perm() != 0o755 || content() != "first" {
		t.Errorf("%v, %v, %q", was, err, content())
	}
	for _, text := range []string{"other", "longer"} {
		if err := os.WriteFile(conf.Program, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := conf.InstallProgram(); err != nil || content() != text {
			t.Errorf("%q after another version, %v", content(), err)
		}
	}
	if files, err := os.ReadDir(conf.BinDir); err != nil || len(files) != 2 {
		t.Errorf("there are %v, %v; want the program and the link that stands in for loopback", files, err)
	}
	conf.Program = filepath.Join(conf.BinDir, "never")
	if err := conf.InstallProgram(); err == nil || content() != "longer" {
		t.Errorf("without a program: %v", err)
	}
}

// Distributions bring the plugin loopback along; ours stands in for it where it is missing.
func TestAnothersLoopbackStays(t *testing.T) {
	conf := config(t)
	path := filepath.Join(conf.BinDir, "loopback")
	if err := conf.InstallProgram(); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(path); err != nil || to != Type {
		t.Errorf("loopback leads to %q, %v; want %s", to, err, Type)
	}
	if err := conf.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(conf.BinDir); err != nil || len(files) > 0 {
		t.Errorf("left over: %v, %v", files, err)
	}
	if err := os.WriteFile(path, []byte("theirs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(conf.InstallProgram(), conf.Uninstall()); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "theirs" {
		t.Errorf("another's loopback is %q, %v", text, err)
	}
}

func TestUninstall(t *testing.T) {
	conf := config(t)
	install := func() {
		t.Helper()
		if err := conf.InstallProgram(); err != nil {
			t.Fatal(err)
		}
		if err := conf.InstallNetwork(); err != nil {
			t.Fatal(err)
		}
	}
	install()
	conf.write(t, "10-calico.conflist", "{}")
	for range 2 {
		if err := conf.Uninstall(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(filepath.Join(conf.BinDir, Type)); err == nil || conf.read(t, File) != "" || conf.read(t, "10-calico.conflist") == "" {
		t.Errorf("left over: %v, %s", err, conf.read(t, File))
	}
	install()
	chained := `{"plugins":[` + part + `,{"type":"istio-cni"}]}`
	conf.write(t, File, chained)
	if err := conf.Uninstall(); err == nil || !strings.Contains(err.Error(), "istio-cni") || conf.read(t, File) != chained {
		t.Errorf("with another's plugin in it: %v", err)
	}
}
