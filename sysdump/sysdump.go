// Package sysdump packs what a bug report needs into one archive, without secrets, and says in it
// what could not be had.
//
// What is collected, and from where, its callers decide. Here it is bounded, looked through for
// secrets, and always laid out alike.
package sysdump

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"
)

// Folder is the only one at the top of an archive, and Missing the file that says what could not
// be had, a line each.
const (
	Folder  = "weft-sysdump"
	Missing = "missing.txt"
)

// MaxEntry and MaxTotal bound a file and all of them, in bytes. Of a longer file there is the
// beginning, or of a log the end.
const (
	MaxEntry = 4 << 20
	MaxTotal = 256 << 20
)

// Archive collects files. Several goroutines may use it.
type Archive struct {
	// Say is called with each thing that could not be had.
	Say func(line string)

	mu      sync.Mutex // guards what follows
	files   map[string][]byte
	missing map[string]string
	total   int
	secrets []string
}

// New is an empty archive. Files that contain one of the secrets are left out, and so are those
// that look as if they had others.
func New(say func(line string), secrets ...string) *Archive {
	a := &Archive{Say: say, files: map[string][]byte{}, missing: map[string]string{}}
	for _, s := range secrets {
		if len(s) >= minSecret {
			a.secrets = append(a.secrets, s)
		}
	}
	return a
}

// minSecret keeps words that are in every file from being secrets.
const minSecret = 12

// Add adds a file.
func (a *Archive) Add(name string, text []byte) { a.add(name, text, false) }

// AddLog adds a log, of which the end counts.
func (a *Archive) AddLog(name string, text []byte) { a.add(name, text, true) }

func (a *Archive) add(name string, text []byte, end bool) {
	if what := Secret(text, a.secrets); what != "" {
		a.Miss(name, fmt.Errorf("it is left out, because it holds %s", what))
		return
	}
	if over := len(text) - MaxEntry; over > 0 && end {
		text = append(fmt.Appendf(nil, "[the first %d bytes are left out]\n", over), text[over:]...)
	} else if over > 0 {
		text = fmt.Appendf(text[:MaxEntry:MaxEntry], "\n[%d bytes more are left out]\n", over)
	}
	a.mu.Lock()
	full := a.total+len(text) > MaxTotal
	if !full {
		a.total += len(text) - len(a.files[name])
		a.files[name] = text
	}
	a.mu.Unlock()
	if full {
		a.Miss(name, fmt.Errorf("it is left out: the archive has its %d MiB", MaxTotal>>20))
	}
}

// JSON adds an answer, or why there is none.
func (a *Archive) JSON(name string, answer any, err error) {
	if err == nil {
		var text []byte
		if text, err = json.MarshalIndent(answer, "", " "); err == nil {
			a.Add(name, append(text, '\n'))
			return
		}
	}
	a.Miss(name, err)
}

// Miss notes what could not be had.
func (a *Archive) Miss(name string, err error) {
	line := strings.Join(strings.Fields(err.Error()), " ")
	if Secret([]byte(line), a.secrets) != "" {
		line = "the reason holds a secret"
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.missing[name]; known {
		return
	}
	a.missing[name] = line
	a.Say(name + ": " + line)
}

// Merge adds the files of another archive in a folder of this one.
func (a *Archive) Merge(folder string, from io.Reader) error {
	z, err := gzip.NewReader(from)
	if err != nil {
		return fmt.Errorf("read archive: %w", err)
	}
	for r := tar.NewReader(io.LimitReader(z, MaxTotal)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		name, inside := strings.CutPrefix(path.Clean(h.Name), Folder+"/")
		if h.Typeflag != tar.TypeReg || !inside || strings.HasPrefix(name, "..") {
			continue
		}
		text, err := io.ReadAll(io.LimitReader(r, 2*MaxEntry))
		if err != nil {
			return fmt.Errorf("read archive: %w", err)
		}
		if name != Missing {
			a.Add(path.Join(folder, name), text)
			continue
		}
		for line := range strings.Lines(string(text)) {
			if what, why, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
				a.Miss(path.Join(folder, what), errors.New(why))
			}
		}
	}
}

// Complete says how many files there are, and how many are missing.
func (a *Archive) Complete() (files, missing int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.files), len(a.missing)
}

// Write writes a compressed archive: files in the order of their names, all of one time.
func (a *Archive) Write(w io.Writer, at time.Time) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	var lines strings.Builder
	for _, name := range slices.Sorted(maps.Keys(a.missing)) {
		fmt.Fprintf(&lines, "%s: %s\n", name, a.missing[name])
	}
	all := maps.Clone(a.files)
	all[Missing] = []byte(lines.String())
	z := gzip.NewWriter(w)
	t := tar.NewWriter(z)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: Folder + "/" + name, Mode: 0o644, Size: int64(len(all[name])), ModTime: at.Truncate(time.Second)}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(all[name]); err != nil {
			return err
		}
	}
	return errors.Join(t.Close(), z.Close())
}

var (
	privateKey = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----`)
	token      = regexp.MustCompile(`\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}`)
	bearer     = regexp.MustCompile(`(?i)\bauthorization: *bearer +\S{12,}`)
)

// encodedKeys are "PRIVATE KEY-" in base64, as Kubernetes has it, at each of the three offsets.
var encodedKeys = []string{"UFJJVkFURSBLRVkt", "BSSVZBVEUgS0VZL", "QUklWQVRFIEtFWS"}

func encoded(text []byte) bool {
	return slices.ContainsFunc(encodedKeys, func(key string) bool { return bytes.Contains(text, []byte(key)) })
}

// Secret says which secret a text holds, or "".
func Secret(text []byte, known []string) string {
	switch {
	case bytes.Contains(text, []byte("PRIVATE KEY")) && privateKey.Match(text), encoded(text):
		return "a private key"
	case bytes.Contains(text, []byte("eyJ")) && token.Match(text), bytes.Contains(text, []byte("earer ")) && bearer.Match(text):
		return "a token"
	}
	for _, s := range known {
		if bytes.Contains(text, []byte(s)) {
			return "a secret of a context"
		}
	}
	return ""
}

// hidden are fields of objects that may hold what is not ours to pass on.
var hidden = map[string]bool{
	"env": true, "envFrom": true, "command": true, "args": true, "managedFields": true, "data": true, "stringData": true, "binaryData": true,
	"lifecycle": true, "kubectl.kubernetes.io/last-applied-configuration": true,
}

// managers is who changed an object when.
var managers = map[string]bool{"managedFields": true, "kubectl.kubernetes.io/last-applied-configuration": true}

// Redact takes out of objects of users what is not the mesh's: of pods what their containers run
// with, and all data. Names, labels, addresses and states stay.
func Redact(o any) any { return without(o, hidden) }

// WithoutManagers takes out of objects who changed them.
func WithoutManagers(o any) any { return without(o, managers) }

func without(o any, hidden map[string]bool) any {
	switch o := o.(type) {
	case map[string]any:
		out := map[string]any{}
		for k, v := range o {
			if !hidden[k] {
				out[k] = without(v, hidden)
			}
		}
		return out
	case []any:
		out := make([]any, len(o))
		for i, v := range o {
			out[i] = without(v, hidden)
		}
		return out
	}
	return o
}
