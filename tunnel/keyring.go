package tunnel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// keyring is this node's private keys and their epoch, as on disk.
type keyring struct {
	Epoch uint64              `json:"epoch"`
	Since time.Time           `json:"since"`
	Lanes [LaneCount]laneKeys `json:"lanes"`
}

type laneKeys struct {
	PrivateKey diskKey `json:"privateKey"`
	// Since is when the device got this key. A handshake before it was made
	// under another one and says nothing.
	Since time.Time `json:"since"`
}

// diskKey is a private key that shows itself to encoding/json, and to nothing
// else.
type diskKey struct{ PrivateKey }

func (k diskKey) MarshalText() ([]byte, error) { return []byte(k.encode()), nil }

func (k *diskKey) UnmarshalText(text []byte) (err error) {
	k.PrivateKey, err = parsePrivateKey(string(text))
	return err
}

func keyringFile(dir string) string { return filepath.Join(dir, "keys.json") }

// loadKeyring reads the keys of a node. ok is false when it never had any. A
// file that does not read is an error and not a new beginning: new keys would
// cut the node off until every peer has learned them.
func loadKeyring(dir string) (keys keyring, ok bool, err error) {
	path := keyringFile(dir)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return keyring{}, false, nil
	}
	if err != nil {
		return keyring{}, false, fmt.Errorf("read keys: %w", err)
	}
	if err := json.Unmarshal(text, &keys); err != nil {
		return keyring{}, false, fmt.Errorf("read keys: %s: %w (restore it, or remove it to give this node new keys)", path, err)
	}
	for i, lane := range keys.Lanes {
		if lane.PrivateKey.IsZero() {
			return keyring{}, false, fmt.Errorf("read keys: %s: %s has no key (restore it, or remove it to give this node new keys)", path, laneName(i))
		}
	}
	return keys, true, nil
}

func (k keyring) store(dir string) error {
	text, err := json.MarshalIndent(k, "", "  ")
	if err != nil {
		return fmt.Errorf("store keys: %w", err)
	}
	if err := writeSecret(keyringFile(dir), append(text, '\n')); err != nil {
		return fmt.Errorf("store keys: %w", err)
	}
	return nil
}

// roster is which peers were configured under which names. A device knows only
// keys; without the names, a restarted agent could not tell who came first.
type roster map[string]Peer

func rosterFile(dir string) string { return filepath.Join(dir, "peers.json") }

// loadRoster reads what store wrote. It holds nothing that cannot be learned
// again, so a file that does not read counts as empty.
func loadRoster(dir string) roster {
	known := roster{}
	text, err := os.ReadFile(rosterFile(dir))
	if err != nil || json.Unmarshal(text, &known) != nil || known == nil {
		return roster{}
	}
	return known
}

func (r roster) store(dir string) error {
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("store peers: %w", err)
	}
	if err := writeSecret(rosterFile(dir), text); err != nil {
		return fmt.Errorf("store peers: %w", err)
	}
	return nil
}
