package bpf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/cilium/ebpf"
)

// Pinned opens the maps that agents of this version keep in dir. The caller only reads them,
// and calls done when it has. The kernel is not told so: it does not map an array into memory
// that was opened for reading only.
func Pinned(dir string) (_ *Maps, done func(), err error) {
	maps := map[string]*ebpf.Map{}
	defer func() {
		if err != nil {
			closeMaps(maps)
		}
	}()
	for _, d := range described {
		name := d.name
		m, err := ebpf.LoadPinnedMap(filepath.Join(dir, d.pin()), nil)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil, fmt.Errorf("there is no map %s in %s: no agent of this version has run there", name, dir)
		}
		if err != nil {
			return nil, nil, fmt.Errorf("open map %s: %w", name, err)
		}
		maps[name] = m
	}
	return tables(maps), func() { closeMaps(maps) }, nil
}
