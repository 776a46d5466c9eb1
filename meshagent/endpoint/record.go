// Package endpoint gives pods their networks on request: namespace, device pair, address,
// and the file that remembers them.
//
// Requesters decide which pods there are, and package bpf what happens to their packets.
package endpoint

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/weft-mesh/weft/statefile"
)

// Record is the part of a pod's network that outlives a reboot: its address and number.
// Everything else can be found in the kernel.
type Record struct {
	Namespace string     `json:"namespace"`
	Pod       string     `json:"pod"`
	UID       string     `json:"uid"`
	IP        netip.Addr `json:"ip"`
	// Second is the address of the other IP family, if the pod has one.
	Second netip.Addr `json:"second,omitzero"`
	// ID is the pod's number on this node, from 1.
	ID uint16 `json:"id"`
	// Container, Netns, Interface and Network are as requested.
	Container string `json:"container,omitempty"`
	Netns     string `json:"netns,omitempty"`
	Interface string `json:"interface,omitempty"`
	Network   string `json:"network,omitempty"`
}

// IPs are the pod's addresses: one, or one of each family.
func (r Record) IPs() []netip.Addr {
	return slices.DeleteFunc([]netip.Addr{r.IP, r.Second}, func(a netip.Addr) bool { return !a.IsValid() })
}

// addresses are the pod's addresses as people read them.
func (r Record) addresses() string {
	var texts []string
	for _, ip := range r.IPs() {
		texts = append(texts, ip.String())
	}
	return strings.Join(texts, " and ")
}

// Device is the name of the device in the pod.
func (r Record) Device() string { return cmp.Or(r.Interface, podDevice) }

// Name is the name of the network namespace that the agent makes: namespace_pod. Neither
// part can contain an underscore.
func (r Record) Name() string { return r.Namespace + "_" + r.Pod }

// Key is the pod as people write it.
func (r Record) Key() string { return r.Namespace + "/" + r.Pod }

// Dir keeps one file per record, and one per released address. It may be used
// concurrently for different pods.
type Dir string

// Load reads all records. Damaged files are put aside, and lost names their pods: look
// for their addresses in the kernel before giving out any.
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

// parse reads one record, which has to be for the pod that the file is named after. Of a
// damaged one, only the pod's name is known.
func parse(file string, text []byte) (r Record, ok bool) {
	err := json.Unmarshal(text, &r)
	if err == nil && r.Name()+suffix == file && r.IP.IsValid() && r.Second.BitLen() != r.IP.BitLen() && r.ID != 0 {
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

// released is the suffix of files that say when an address was released.
const released = ".released"

// Release removes a record and remembers when its address was released. It writes the
// latter first, so that a crash in between does not lose the address.
func (d Dir) Release(r Record, at time.Time) error {
	if r.IP.IsValid() { // the second rests with it
		if err := statefile.Write(d.releasedPath(r.IP), []byte(at.UTC().Format(time.RFC3339Nano))); err != nil {
			return fmt.Errorf("remember release of %s: %w", r.IP, err)
		}
	}
	return d.Remove(r)
}

// Taken forgets that an address was released: a pod has it again.
func (d Dir) Taken(ip netip.Addr) error {
	if err := os.Remove(d.releasedPath(ip)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget release of %s: %w", ip, err)
	}
	return nil
}

// Released returns the released addresses and when that was. For a damaged file, its
// modification time counts.
func (d Dir) Released() (map[netip.Addr]time.Time, error) {
	files, err := os.ReadDir(string(d))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read released addresses: %w", err)
	}
	all := map[netip.Addr]time.Time{}
	for _, f := range files {
		text, ok := strings.CutSuffix(f.Name(), released)
		ip, err := netip.ParseAddr(text)
		if !ok || err != nil {
			continue
		}
		info, err := f.Info()
		if err != nil {
			return nil, fmt.Errorf("read released address: %w", err)
		}
		all[ip] = info.ModTime()
		if text, err := os.ReadFile(filepath.Join(string(d), f.Name())); err == nil {
			if at, err := time.Parse(time.RFC3339Nano, string(text)); err == nil {
				all[ip] = at
			}
		}
	}
	return all, nil
}

func (d Dir) releasedPath(ip netip.Addr) string {
	return filepath.Join(string(d), ip.String()+released)
}

// Remove deletes a record; it returns nil if there is none.
func (d Dir) Remove(r Record) error {
	if err := os.Remove(d.path(r)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget endpoint %s: %w", r.Key(), err)
	}
	return nil
}

func (d Dir) path(r Record) string { return filepath.Join(string(d), r.Name()+suffix) }
