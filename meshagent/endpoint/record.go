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

	"github.com/weft-mesh/weft/statefile"
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

// Load reads all records. A file that is damaged is put aside; lost are its pods,
// of which no more than the names is known: their addresses must not be given away
// before the kernel was asked for them.
func (d Dir) Load() (records, lost []Record, err error) {
	files, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read endpoints: %w", err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), suffix) || strings.HasPrefix(f.Name(), ".") {
			continue
		}
		path := filepath.Join(string(d), f.Name())
		text, err := os.ReadFile(path)
		if err != nil {
			return nil, nil, fmt.Errorf("read endpoint: %w", err)
		}
		r, ok := parse(f.Name(), text)
		if ok {
			records = append(records, r)
			continue
		}
		if _, err := statefile.PutAside(path); err != nil {
			return nil, nil, fmt.Errorf("read endpoints: %w", err)
		}
		if r.Namespace != "" {
			lost = append(lost, r)
		}
	}
	return records, lost, nil
}

// parse reads one record, which has to be that of the pod that the file is named
// after. Of one that is damaged, the pod's name is all that is known.
func parse(file string, text []byte) (r Record, ok bool) {
	err := json.Unmarshal(text, &r)
	if err == nil && r.Name()+suffix == file && r.IP.IsValid() && r.ID != 0 {
		return r, true
	}
	namespace, pod, _ := strings.Cut(strings.TrimSuffix(file, suffix), "_")
	if namespace == "" || pod == "" {
		return Record{}, false
	}
	return Record{Namespace: namespace, Pod: pod}, false
}

const suffix = ".json"

// Save writes one record; after it returns the record survives a power cut.
func (d Dir) Save(r Record) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode endpoint %s: %w", r.Key(), err)
	}
	if err := statefile.Write(d.path(r), text); err != nil {
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

func (d Dir) path(r Record) string { return filepath.Join(string(d), r.Name()+suffix) }
