package sysdump

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// unpack returns an archive's files, and their names in order.
func unpack(t *testing.T, packed []byte) (files map[string]string, names []string) {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		t.Fatal(err)
	}
	files = map[string]string{}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files, names
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name], names = string(text), append(names, h.Name)
	}
}

func pack(t *testing.T, a *Archive) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := a.Write(&out, time.Unix(1700000000, 5)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func TestAnArchiveSaysWhatIsMissing(t *testing.T) {
	var said []string
	a := New(func(line string) { said = append(said, line) })
	a.Add("b.txt", []byte("b"))
	a.JSON("a.json", map[string]int{"n": 1}, nil)
	a.JSON("c.json", nil, errors.New("no answer\nin time"))
	a.Miss("c.json", errors.New("again"))
	packed := pack(t, a)
	files, names := unpack(t, packed)
	want := []string{"weft-sysdump/a.json", "weft-sysdump/b.txt", "weft-sysdump/missing.txt"}
	if !slices.Equal(names, want) {
		t.Errorf("files %v, want %v", names, want)
	}
	if got := files["weft-sysdump/missing.txt"]; got != "c.json: no answer in time\n" || len(said) != 1 {
		t.Errorf("missing %q; said %q", got, said)
	}
	if !bytes.Equal(packed, pack(t, a)) {
		t.Error("the same files make another archive")
	}
	// A node's archive becomes a folder of the cluster's.
	all := New(func(string) {})
	if err := all.Merge("nodes/n1", bytes.NewReader(packed)); err != nil {
		t.Fatal(err)
	}
	files, _ = unpack(t, pack(t, all))
	if files["weft-sysdump/nodes/n1/b.txt"] != "b" || files["weft-sysdump/missing.txt"] != "nodes/n1/c.json: no answer in time\n" {
		t.Errorf("merged: %v", files)
	}
	if err := all.Merge("nodes/n2", strings.NewReader("not an archive")); err == nil {
		t.Error("anything is an archive")
	}
}

func TestFilesAreBounded(t *testing.T) {
	a := New(func(string) {})
	long := bytes.Repeat([]byte("x"), MaxEntry)
	a.Add("file", append(slices.Clone(long), "end"...))
	a.AddLog("log", append(slices.Clone(long), "end"...))
	files, _ := unpack(t, pack(t, a))
	if got := files["weft-sysdump/file"]; !strings.HasSuffix(got, "x\n[3 bytes more are left out]\n") {
		t.Errorf("the file ends with %q", got[len(got)-40:])
	}
	if got := files["weft-sysdump/log"]; !strings.HasPrefix(got, "[the first 3 bytes are left out]\nx") || !strings.HasSuffix(got, "xend") {
		t.Errorf("the log begins with %q", got[:40])
	}
}

func TestSecretsStayOut(t *testing.T) {
	pem := "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\n"
	jwt := "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJub2JvZHkifQ.c2lnbmF0dXJlLi4u"
	secrets := map[string]string{
		"pem": pem, "token": "token=" + jwt, "bearer": "Authorization: Bearer 0123456789abcdef", "known": "x=hunter2hunter2;",
		"base64": base64.StdEncoding.EncodeToString([]byte(pem)), "base64 1": base64.StdEncoding.EncodeToString([]byte("a" + pem)), "base64 2": base64.StdEncoding.EncodeToString([]byte("ab" + pem)),
	}
	a := New(func(string) {}, "hunter2hunter2", "x")
	for name, text := range secrets {
		a.Add(name, []byte("before "+text+" after"))
		a.Miss(name+" failed", errors.New(text))
	}
	a.Add("public", []byte("-----BEGIN CERTIFICATE-----\nMHcCAQEE\n-----END CERTIFICATE-----\n x ey"))
	files, names := unpack(t, pack(t, a))
	if len(names) != 2 || files["weft-sysdump/public"] == "" {
		t.Errorf("files %v", names)
	}
	for name, text := range secrets {
		for file, in := range files {
			if strings.Contains(in, text) {
				t.Errorf("%s is in %s", name, file)
			}
		}
		if !strings.Contains(files["weft-sysdump/missing.txt"], name+": it is left out, because it holds a") {
			t.Errorf("nothing says that %s is left out", name)
		}
	}
}

func TestRedact(t *testing.T) {
	var o any
	pod := `{"kind":"Pod","metadata":{"name":"web","annotations":{"kubectl.kubernetes.io/last-applied-configuration":"S1","a":"b"},"managedFields":[{}]},
		"spec":{"nodeName":"n1","containers":[{"name":"c","image":"i","args":["S2"],"command":["S3"],"env":[{"name":"PASSWORD","value":"S4"}],"ports":[{"containerPort":80}]}]},"data":{"k":"S5"}}`
	if err := json.Unmarshal([]byte(pod), &o); err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(Redact(o))
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"S1", "S2", "S3", "S4", "S5", "PASSWORD", "managedFields"} {
		if strings.Contains(string(text), gone) {
			t.Errorf("%s is in %s", gone, text)
		}
	}
	for _, kept := range []string{`"nodeName":"n1"`, `"a":"b"`, `"containerPort":80`, `"name":"web"`} {
		if !strings.Contains(string(text), kept) {
			t.Errorf("%s is not in %s", kept, text)
		}
	}
}
