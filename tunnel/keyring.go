package tunnel

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/weft-mesh/weft/statefile"
)

// keyring is this node's private keys and their epoch, as on disk.
type keyring struct {
	Epoch uint64              `json:"epoch"`
	Since time.Time           `json:"since"`
	Lanes [LaneCount]laneKeys `json:"lanes"`
}

type laneKeys struct {
	PrivateKey diskKey `json:"privateKey"`
	// Since is when the device got this key. Earlier handshakes were made with
	// another one and do not count.
	Since time.Time `json:"since"`
}

// diskKey is a private key that encodes itself, only for the key file.
type diskKey struct{ PrivateKey }

func (k diskKey) MarshalText() ([]byte, error) { return []byte(k.encode()), nil }

func (k *diskKey) UnmarshalText(text []byte) (err error) {
	k.PrivateKey, err = parsePrivateKey(string(text))
	return err
}

func keyringFile(dir string) string { return filepath.Join(dir, "keys.json") }

// loadKeyring reads the keys of a node. ok is false if there are none; err says that
// the file exists but cannot be used.
func loadKeyring(dir string) (keys keyring, ok bool, err error) {
	text, err := os.ReadFile(keyringFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return keyring{}, false, nil
	}
	if err != nil {
		return keyring{}, false, err
	}
	if err := json.Unmarshal(text, &keys); err != nil {
		return keyring{}, false, err
	}
	for i, lane := range keys.Lanes {
		if lane.PrivateKey.IsZero() {
			return keyring{}, false, fmt.Errorf("%s has no key", laneName(i))
		}
	}
	return keys, true, nil
}

func (k keyring) store(dir string) error {
	text, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return fmt.Errorf("store keys: %w", err)
	}
	if err := statefile.Write(keyringFile(dir), append(text, '\n')); err != nil {
		return fmt.Errorf("store keys: %w", err)
	}
	return nil
}

// roster has peers by name, on disk those that were configured: a device knows only keys;
// without names, a restarted agent could not tell which peer came first. A peer is replaced,
// never changed, because rosters share it.
type roster map[string]*Peer

// peer is the one of this name, or none.
func (r roster) peer(name string) Peer {
	if p := r[name]; p != nil {
		return *p
	}
	return Peer{}
}

// has says whether the peer of this name is exactly this one.
func (r roster) has(name string, p Peer) bool {
	have := r[name]
	return have != nil && have.Cluster == p.Cluster && have.Node == p.Node && have.Endpoint == p.Endpoint && have.Keys == p.Keys && slices.Equal(have.Allowed, p.Allowed)
}

func rosterFile(dir string) string { return filepath.Join(dir, "peers.json") }

// loadRoster reads what store wrote. err says that the file exists but cannot be used;
// nothing in it is lost for good.
func loadRoster(dir string) (roster, error) {
	known := roster{}
	text, err := os.ReadFile(rosterFile(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return roster{}, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	if err != nil || known == nil {
		return roster{}, err
	}
	maps.DeleteFunc(known, func(_ string, p *Peer) bool { return p == nil })
	return known, nil
}

func (r roster) store(dir string) error {
	if err := statefile.Create(rosterFile(dir), r.write); err != nil {
		return fmt.Errorf("store peers: %w", err)
	}
	return nil
}

// write writes a JSON object one peer after another: in a large mesh the whole takes ten
// megabytes.
func (r roster) write(f *os.File) error {
	w := bufio.NewWriterSize(f, 64<<10)
	before := "{"
	for _, name := range slices.Sorted(maps.Keys(r)) {
		key, err := json.Marshal(name)
		if err != nil {
			return err
		}
		value, err := json.Marshal(r[name])
		if err != nil {
			return err
		}
		fmt.Fprintf(w, "%s%s:%s", before, key, value) // Flush returns the error
		before = ","
	}
	if len(r) == 0 {
		w.WriteString(before)
	}
	w.WriteString("}")
	return w.Flush()
}
