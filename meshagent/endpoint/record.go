// Package endpoint gives a pod its network: namespace, device pair, address and
// the file that remembers them.
//
// Which pods there are and what they may do is decided in package meshagent;
// what happens to their packets in package bpf.
package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Record is what outlives the agent and a reboot: which address and number a
// pod has. Everything else is found again in the kernel.
type Record struct {
	Namespace string     `json:"namespace"`
	Pod       string     `json:"pod"`
	UID       string     `json:"uid"`
	IP        netip.Addr `json:"ip"`
	// ID is the pod's number on this node, from 1.
	ID uint16 `json:"id"`
}

// Name is the name of the pod's network namespace: namespace_pod. Neither part
// can contain an underscore.
func (r Record) Name() string { return r.Namespace + "_" + r.Pod }

// Key is the pod as people write it.
func (r Record) Key() string { return r.Namespace + "/" + r.Pod }

// Dir keeps one file per record. It is not safe for concurrent use.
type Dir string

// Load reads all records. A file that cannot be read is an error that names it:
// guessing would give its address away twice.
func (d Dir) Load() ([]Record, error) {
	files, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read endpoints: %w", err)
	}
	var records []Record
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), ".json") || strings.HasPrefix(f.Name(), ".") {
			continue
		}
		path := filepath.Join(string(d), f.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read endpoint: %w", err)
		}
		var r Record
		if err := json.Unmarshal(text, &r); err != nil {
			return nil, fmt.Errorf("read endpoint %s: %w; remove the file to give the pod a new address", path, err)
		}
		records = append(records, r)
	}
	return records, nil
}

// Save writes one record; after it returns the record survives a power cut.
func (d Dir) Save(r Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode endpoint %s: %w", r.Key(), err)
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return fmt.Errorf("save endpoint %s: %w", r.Key(), err)
	}
	if err := WriteFile(d.path(r), text); err != nil {
		return fmt.Errorf("save endpoint %s: %w", r.Key(), err)
	}
	return nil
}

// Remove forgets a record; nil if there is none.
func (d Dir) Remove(r Record) error {
	if err := os.Remove(d.path(r)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget endpoint %s: %w", r.Key(), err)
	}
	return nil
}

func (d Dir) path(r Record) string { return filepath.Join(string(d), r.Name()+".json") }

// WriteFile replaces path with content, mode 0600, in one step: a reader sees
// the old or the new content, also after a power cut.
func WriteFile(path string, content []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
