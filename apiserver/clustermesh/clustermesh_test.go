package clustermesh

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

// A client configuration of cluster west with each line that is not "", and certificates
// of a prefix.
func west(endpoints, prefix string, more ...string) string {
	return fmt.Sprintf("endpoints:\n%s\ntrusted-ca-file: /var/lib/cilium/clustermesh/%[2]setcd-client-ca.crt\nkey-file: /var/lib/cilium/clustermesh/%[2]setcd-client.key\ncert-file: /var/lib/cilium/clustermesh/%[2]setcd-client.crt\n%[3]s",
		endpoints, prefix, strings.Join(more, "\n"))
}

// secret is the manifest of a Secret with these files, the values in clear text.
func secret(name string, files map[string]string) string {
	text, err := yaml.Marshal(map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]any{"name": name}, "stringData": files})
	if err != nil {
		panic(err)
	}
	return string(text)
}

var (
	own    = map[string]string{"west.etcd-client-ca.crt": "CA", "west.etcd-client.crt": "CERT", "west.etcd-client.key": "KEY"}
	remote = secret("clustermesh-apiserver-remote-cert", map[string]string{"ca.crt": "CA", "tls.crt": "CERT", "tls.key": "KEY"})
	local  = secret("clustermesh-apiserver-local-cert", map[string]string{"ca.crt": "LOCALCA", "tls.crt": "LOCALCERT", "tls.key": "LOCALKEY"})
)

// with adds a file to the certificates of cluster west.
func with(name, text string) map[string]string {
	files := map[string]string{name: text}
	for k, v := range own {
		files[k] = v
	}
	return files
}

// What Helm, the cilium command and operators write is understood.
func TestAccess(t *testing.T) {
	pem := Access{CA: "CA", Cert: "CERT", Key: "KEY"}
	at := func(a Access, serverName string, endpoints ...string) Access {
		a.ServerName, a.Endpoints = serverName, endpoints
		return a
	}
	const aliases = "cilium-host-aliases:\n- hostname: west.mesh.cilium.io\n  ips: [192.0.2.10, 2001:db8::10]\n"
	for _, c := range []struct {
		name     string
		manifest string
		at       []string
		want     Access
	}{
		{"an address, own certificates", secret("cilium-clustermesh", with("west", west("- https://192.0.2.10:2379", "west."))), nil,
			at(pem, "", "https://192.0.2.10:2379")},
		{"a DNS name and several endpoints", secret("cilium-clustermesh", with("west", west("- https://mesh.example:32379\n- https://[2001:db8::1]:2379", "west."))), nil,
			at(pem, "", "https://mesh.example:32379", "https://[2001:db8::1]:2379")},
		{"addresses of a name", secret("cilium-kvstoremesh", with("west", west("- https://west.mesh.cilium.io:2379", "west.", aliases))), nil,
			at(pem, "west.mesh.cilium.io", "https://192.0.2.10:2379", "https://[2001:db8::10]:2379")},
		{"addresses of a name as a mapping", secret("cilium-kvstoremesh", with("west", west("- https://west.mesh.cilium.io:2379", "west.", "cilium-host-aliases:\n  west.mesh.cilium.io:\n    ips: [192.0.2.10]\n"))), nil,
			at(pem, "west.mesh.cilium.io", "https://192.0.2.10:2379")},
		{"certificates for all clusters, in another Secret", secret("cilium-clustermesh", map[string]string{"west": west("- https://192.0.2.10:2379", "common-")}) + "---\n" + remote, nil,
			at(pem, "", "https://192.0.2.10:2379")},
		{"a name of pods, and the operator knows its address", secret("cilium-clustermesh", with("west", west("- https://west.mesh.cilium.io:2379", "west."))), []string{"https://192.0.2.9:2379"},
			at(pem, "west.mesh.cilium.io", "https://192.0.2.9:2379")},
		{"agents read a KVStoreMesh", secret("cilium-clustermesh", map[string]string{"west": west("- https://clustermesh-apiserver.kube-system.svc:2379", "local-")}) + "---\n" + local, []string{"https://192.0.2.8:2379"},
			at(Access{CA: "LOCALCA", Cert: "LOCALCERT", Key: "LOCALKEY"}, "clustermesh-apiserver.kube-system.svc", "https://192.0.2.8:2379")},
		{"the KVStoreMesh's own way is preferred", secret("cilium-kvstoremesh", with("west", west("- https://192.0.2.10:2379", "west."))) + "---\n" + secret("cilium-clustermesh", map[string]string{"west": west("- https://clustermesh-apiserver.kube-system.svc:2379", "local-")}), nil,
			at(pem, "", "https://192.0.2.10:2379")},
		{"only certificates, and the operator knows the address", remote, []string{"https://192.0.2.9:2379"},
			at(pem, "west.mesh.cilium.io", "https://192.0.2.9:2379")},
		{"a list, and fields that nobody knows", "apiVersion: v1\nkind: List\nitems:\n- kind: ConfigMap\n- apiVersion: v1\n  kind: Secret\n  metadata: {name: cilium-clustermesh, uid: x}\n  immutable: true\n  data:\n" +
			"    west: ZW5kcG9pbnRzOiBbImh0dHBzOi8vMTkyLjAuMi4xMDoyMzc5Il0KdG9tb3Jyb3c6IDEKdHJ1c3RlZC1jYS1maWxlOiBhCmtleS1maWxlOiBiCmNlcnQtZmlsZTogYwo=\n    a: Q0E=\n    b: S0VZ\n    c: Q0VSVA==\n", nil,
			at(pem, "", "https://192.0.2.10:2379")},
	} {
		files, err := Parse([]byte(c.manifest))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		got, err := files.Access("west", c.at...)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// Each mistake is named with its field and what to do about it.
func TestMistakes(t *testing.T) {
	config := func(text string) string { return secret("cilium-clustermesh", with("west", text)) }
	for _, c := range []struct {
		name, manifest string
		want           []string
	}{
		{"no YAML", "\t", []string{"document 1 is not a Secret"}},
		{"a value of another type", "kind: Secret\ndata: {west: [KEY]}", []string{"document 1 is not a Secret: data is of the wrong type"}},
		{"another kind", "kind: Pod", []string{"there is no Secret in it: `kubectl -n kube-system get secret cilium-clustermesh -o yaml`"}},
		{"another cluster", secret("cilium-clustermesh", map[string]string{"north": west("- https://192.0.2.1:2379", "north."), "south": west("- https://192.0.2.2:2379", "south.")}),
			[]string{`there is no cluster "west" in it, only north, south`}},
		{"only certificates", remote, []string{"--endpoint https://ADDRESS:2379"}},
		{"no certificates", secret("cilium-clustermesh", map[string]string{"west": west("- https://192.0.2.1:2379", "common-")}),
			[]string{"cert-file: there is no common-etcd-client.crt: it is in Secret clustermesh-apiserver-remote-cert", "key-file: ", "trusted-ca-file: "}},
		{"no endpoints", config("endpoints: []\n"), []string{"cluster west: endpoints: there are none", "key-file: it is missing"}},
		{"no TLS", config(west("- http://192.0.2.1:2379", "west.")), []string{`endpoints: "http://192.0.2.1:2379" is not of the form https://host:port`}},
		{"no port", config(west("- https://192.0.2.1", "west.")), []string{"not of the form https://host:port"}},
		{"TLS turned off", config(west("- https://192.0.2.1:2379", "west.", "insecure-transport: true\ninsecure-skip-tls-verify: true")),
			[]string{"insecure-transport: a peer is reached by TLS only", "insecure-skip-tls-verify: the server of a peer is always verified"}},
		{"a name of pods", config(west("- https://west.mesh.cilium.io:2380", "west.")), []string{"only Cilium resolves the name in https://west.mesh.cilium.io:2380: say where that is with --endpoint https://ADDRESS:2380"}},
		{"several names", config(west("- https://west.mesh.cilium.io:2379\n- https://a.svc:2379", "west.", "cilium-host-aliases: [{hostname: west.mesh.cilium.io, ips: [192.0.2.1]}]")), []string{"several names"}},
		{"an alias without addresses", config(west("- https://west.mesh.cilium.io:2379", "west.", "cilium-host-aliases: [{hostname: west.mesh.cilium.io}]")), []string{"without addresses"}},
		{"an alias twice", config(west("- https://west.mesh.cilium.io:2379", "west.", "cilium-host-aliases: [{hostname: a, ips: [192.0.2.1]}, {hostname: a, ips: [192.0.2.1]}]")), []string{"a twice"}},
		{"a wrong alias", config(west("- https://west.mesh.cilium.io:2379", "west.", "cilium-host-aliases: [{hostname: a, ips: [a]}]")), []string{"cilium-host-aliases cannot be read"}},
	} {
		files, err := Parse([]byte(c.manifest))
		if err == nil {
			_, err = files.Access("west")
		}
		if err == nil {
			t.Errorf("%s: accepted", c.name)
			continue
		}
		for _, want := range c.want {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %q does not say %q", c.name, err, want)
			}
		}
		if strings.Contains(err.Error(), "KEY") {
			t.Errorf("%s: a secret in %q", c.name, err)
		}
	}
}

// The same from a folder, as it is mounted or extracted, and from one file in it.
func TestLoad(t *testing.T) {
	mounted, dir := t.TempDir(), t.TempDir()
	for name, text := range with("west", west("- https://192.0.2.10:2379", "west.")) {
		if err := os.WriteFile(filepath.Join(mounted, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join(mounted, name), filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "notes"), []byte("kind: notes\nendpoints: none"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "..data"), 0o700); err != nil {
		t.Fatal(err)
	}
	manifest := filepath.Join(t.TempDir(), "secret.yaml")
	if err := os.WriteFile(manifest, []byte(secret("cilium-clustermesh", with("west", west("- https://192.0.2.10:2379", "west.")))), 0o600); err != nil {
		t.Fatal(err)
	}
	want := Access{Endpoints: []string{"https://192.0.2.10:2379"}, CA: "CA", Cert: "CERT", Key: "KEY"}
	for _, c := range []struct{ path, cluster string }{{dir, "west"}, {filepath.Join(dir, "west"), "west"}, {filepath.Join(dir, "west"), "other"}, {manifest, "west"}} {
		files, err := Load(c.path, c.cluster)
		if err != nil {
			t.Errorf("%s: %v", c.path, err)
			continue
		}
		if got, err := files.Access(c.cluster); err != nil || !cmp.Equal(got, want) {
			t.Errorf("%s: %#v, %v", c.path, got, err)
		}
	}
	if files, _ := Load(dir, "west"); !slices.Equal(files.Clusters(), []string{"west"}) || files["notes"] != nil {
		t.Errorf("clusters %q", files.Clusters())
	}
	if _, err := Load(filepath.Join(dir, "gone"), "west"); !os.IsNotExist(err) {
		t.Errorf("a file that does not exist: %v", err)
	}
}

// The manifest is what Helm makes of a cluster with its own certificates.
func TestManifest(t *testing.T) {
	a := Access{Endpoints: []string{"https://172.16.1.1:2379", "https://172.16.1.2:2379"}, CA: "CA", Cert: "CERT", Key: "KEY"}
	const direct = "endpoints:\n- https://172.16.1.1:2379\n- https://172.16.1.2:2379\n" +
		"trusted-ca-file: /var/lib/cilium/clustermesh/west.etcd-client-ca.crt\nkey-file: /var/lib/cilium/clustermesh/west.etcd-client.key\ncert-file: /var/lib/cilium/clustermesh/west.etcd-client.crt\n"
	const through = "endpoints:\n- https://clustermesh-apiserver.cilium.svc:2379\n" +
		"trusted-ca-file: /var/lib/cilium/clustermesh/local-etcd-client-ca.crt\nkey-file: /var/lib/cilium/clustermesh/local-etcd-client.key\ncert-file: /var/lib/cilium/clustermesh/local-etcd-client.crt\n"
	for _, c := range []struct {
		kvstoremesh bool
		want        map[string]map[string]string
	}{
		{false, map[string]map[string]string{"cilium-clustermesh": with("west", direct)}},
		{true, map[string]map[string]string{"cilium-clustermesh": {"west": through}, "cilium-kvstoremesh": with("west", direct)}},
	} {
		l := Manifest("west", a, "cilium", c.kvstoremesh)
		got := map[string]map[string]string{}
		for _, s := range l.Items {
			got[s.Metadata.Name] = map[string]string{}
			if s.APIVersion != "v1" || s.Kind != "Secret" || s.Metadata.Namespace != "cilium" {
				t.Errorf("%+v", s.Metadata)
			}
			for name, text := range s.Data {
				got[s.Metadata.Name][name] = string(text)
			}
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("KVStoreMesh %v (-want +got):\n%s", c.kvstoremesh, diff)
		}
		text, err := yaml.Marshal(l)
		if err != nil {
			t.Fatal(err)
		}
		files, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := files.Access("west"); err != nil || !cmp.Equal(a, back) {
			t.Errorf("read back: %#v, %v", back, err)
		}
	}
	for _, v := range []any{a, Manifest("west", a, "x", true), Manifest("west", a, "x", true).Items[0]} {
		if text := fmt.Sprintf("%v %+v %#v", v, v, v); strings.Contains(text, "KEY") {
			t.Errorf("%T prints itself", v)
		}
	}
}

// FuzzParse: whatever is accepted can be written and reads back the same.
func FuzzParse(f *testing.F) {
	f.Add([]byte(secret("cilium-clustermesh", with("west", west("- https://192.0.2.10:2379", "west.")))))
	f.Add([]byte(secret("cilium-clustermesh", with("west", west("- https://west.mesh.cilium.io:2379", "west.", "cilium-host-aliases:\n- hostname: west.mesh.cilium.io\n  ips: [192.0.2.10]")))))
	f.Add([]byte(secret("cilium-clustermesh", map[string]string{"west": west("- https://192.0.2.10:2379", "common-")}) + "---\n" + remote))
	f.Add([]byte("kind: List\nitems: [{kind: Secret, data: {west: ZQ==}}]"))
	f.Fuzz(func(t *testing.T, text []byte) {
		files, err := Parse(text)
		if err != nil {
			return
		}
		a, err := files.Access("west")
		if err != nil || a.ServerName != "" {
			return
		}
		again, err := yaml.Marshal(Manifest("west", a, "kube-system", true))
		if err != nil {
			t.Fatal(err)
		}
		if files, err = Parse(again); err != nil {
			t.Fatal(err)
		}
		if back, err := files.Access("west"); err != nil || !cmp.Equal(a, back) {
			t.Errorf("%#v, then %#v, %v", a, back, err)
		}
	})
}
