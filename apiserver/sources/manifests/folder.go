package manifests

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// endings are the extensions of files that are read, as `weft apply` reads a folder.
var endings = []string{".yaml", ".yml", ".json"}

// stamp is what tells that a file has changed without reading it. A link is followed: the
// mounts of Kubernetes exchange all files of a folder by one link.
type stamp struct {
	device, inode uint64
	size          int64
	modified      time.Time
	// changed moves also if a program sets back modified.
	changed syscall.Timespec
	// err is why the file cannot be looked at.
	err string
}

// look is a folder as it is at one moment.
type look struct {
	files map[string]stamp
	// err is why the folder cannot be read.
	err string
}

// lookAt looks at the files of a folder, except for those in folders below and those whose
// name begins with a dot. dir may be "", which is as a folder without files.
func lookAt(dir string) look {
	if dir == "" {
		return look{}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return look{err: cause(err)}
	}
	l := look{files: map[string]stamp{}}
	for _, e := range entries {
		if !slices.Contains(endings, filepath.Ext(e.Name())) || strings.HasPrefix(e.Name(), ".") || e.IsDir() {
			continue
		}
		info, err := os.Stat(filepath.Join(dir, e.Name()))
		switch {
		case err != nil:
			l.files[e.Name()] = stamp{err: cause(err)}
		case !info.Mode().IsRegular():
			l.files[e.Name()] = stamp{err: "it is not a regular file"}
		default:
			s := stamp{size: info.Size(), modified: info.ModTime()}
			if sys, ok := info.Sys().(*syscall.Stat_t); ok {
				s.device, s.inode, s.changed = uint64(sys.Dev), sys.Ino, sys.Ctim
			}
			l.files[e.Name()] = s
		}
	}
	return l
}

// cause is an error of a file without the file's name, which its reader adds.
func cause(err error) string {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err.Error()
	}
	return err.Error()
}

// file is a file of the folder with its text, or why that cannot be read.
type file struct {
	name string
	text []byte
	err  string
}

// read reads the files of a look, in order of name. Beyond the limit, in bytes of all files,
// none is read.
func (l look) read(dir string, limit int64) ([]file, error) {
	var names []string
	var total int64
	for name, s := range l.files {
		names, total = append(names, name), total+s.size
	}
	if total > limit {
		return nil, fmt.Errorf("its manifests have %d MiB, and a folder may have %d", total>>20, limit>>20)
	}
	slices.Sort(names)
	all := make([]file, 0, len(names))
	for _, name := range names {
		f := file{name: name, err: l.files[name].err}
		if f.err == "" {
			text, err := os.ReadFile(filepath.Join(dir, name))
			switch {
			case err != nil:
				f.err = cause(err)
			case strings.TrimSpace(string(text)) == "":
				// As a crash leaves it, or whoever is about to write it.
				f.err = "it is empty"
			default:
				f.text = text
			}
		}
		all = append(all, f)
	}
	return all, nil
}
