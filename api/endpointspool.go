package api

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/weft-mesh/weft/statefile"
)

// EndpointSpool is a folder for removals while no agent answers: who requests one leaves it
// there, one file each, and the agent makes it once it runs. Several processes may use it.
type EndpointSpool string

// DefaultEndpointSpool is the folder unless it is configured otherwise.
const DefaultEndpointSpool EndpointSpool = "/var/lib/weft/cni"

const spooled = ".json"

// Put leaves a removal for the agent. After it returns, that survives a power cut. A removal
// is about one sandbox: the name may belong to another pod by the time it is made.
func (d EndpointSpool) Put(r EndpointRequest) error {
	if r.Container == "" {
		return Invalid("", "the removal of pod %s names no container", r.Key())
	}
	if err := r.Validate(); err != nil {
		return err
	}
	text, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode removal of pod %s: %w", r.Key(), err)
	}
	if err := statefile.Write(d.path(r), text); err != nil {
		return fmt.Errorf("leave the removal of pod %s to the agent: %w", r.Key(), err)
	}
	return nil
}

// Forget takes back a removal that has been made otherwise; nil if there is none.
func (d EndpointSpool) Forget(r EndpointRequest) error {
	if err := os.Remove(d.path(r)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the removal of pod %s: %w", r.Key(), err)
	}
	return nil
}

// path is the same for each request to remove one sandbox.
func (d EndpointSpool) path(r EndpointRequest) string {
	sum := sha256.Sum256([]byte(r.Key() + " " + r.UID + " " + r.Container))
	return filepath.Join(string(d), hex.EncodeToString(sum[:16])+spooled)
}

// Each makes all removals, and forgets those that do returns nil for: after a crash in
// between, they are made again. It goes on after a failure. What cannot be read as a removal
// is put aside, and the error says so once: nobody else knows which pod it was about.
func (d EndpointSpool) Each(do func(EndpointRequest) error) error {
	files, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the removals left to the agent: %w", err)
	}
	var errs []error
	for _, f := range files {
		if f.IsDir() || strings.HasPrefix(f.Name(), ".") || !strings.HasSuffix(f.Name(), spooled) {
			continue
		}
		path := filepath.Join(string(d), f.Name())
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue // taken back meanwhile
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("read a removal left to the agent: %w", err))
			continue
		}
		r, err := ReadEndpointRequest(bytes.NewReader(text))
		if err != nil || r.Container == "" {
			if err == nil {
				err = errors.New("it names no container")
			}
			aside, failed := statefile.PutAside(path)
			if failed != nil {
				errs = append(errs, failed)
				continue
			}
			errs = append(errs, fmt.Errorf("a removal left to the agent cannot be read (%w): its pod keeps its network until the runtime collects it; the file is kept as %s", err, aside.Aside))
			continue
		}
		if err := do(r); err != nil {
			errs = append(errs, fmt.Errorf("remove pod %s, as was left to the agent: %w", r.Key(), err))
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("forget the removal of pod %s: %w", r.Key(), err))
		}
	}
	return errors.Join(errs...)
}
