// Package statefile keeps the files that outlive a process: each is written as a
// whole or not at all, one that is damaged is put aside and not lost, and a folder
// of them belongs to one process at a time.
//
// What they hold, and how work goes on without them, is their owners' business.
package statefile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Write replaces a file as a whole, readable by its owner alone, and makes its
// folder, 0700. After a crash at any point it holds the old content or the new.
func Write(path string, content []byte) (err error) {
	dir := filepath.Dir(path)
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, ".new-*") // 0600
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
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// asideFolder, beside a damaged file, is where it is kept, and stamp is how the
// time is written behind its name.
const (
	asideFolder = "damaged"
	stamp       = "20060102T150405.000"
)

// Damaged is a file that was put aside.
type Damaged struct {
	Path  string // where it was
	Aside string // where it is
	Since time.Time
}

// String says what became of it.
func (d Damaged) String() string {
	return fmt.Sprintf("%s is damaged and was put aside as %s", d.Path, d.Aside)
}

// damaged names a damaged file of now in the folder dir, as nothing there is named
// yet: the name tells the time to the millisecond, and a later one is taken if
// another file has that.
func damaged(path, dir string) Damaged {
	d := Damaged{Path: path, Since: time.Now()}
	for {
		d.Aside = filepath.Join(dir, filepath.Base(path)+"-"+d.Since.UTC().Format(stamp))
		if _, err := os.Lstat(d.Aside); err != nil {
			return d
		}
		d.Since = d.Since.Add(time.Millisecond)
	}
}

// PutAside moves a damaged file out of the way, into a folder beside it, for
// somebody to look at.
func PutAside(path string) (Damaged, error) {
	dir := filepath.Join(filepath.Dir(path), asideFolder)
	d := damaged(path, dir)
	err := os.MkdirAll(dir, 0o700)
	if err == nil {
		err = os.Rename(path, d.Aside)
	}
	if err != nil {
		return d, fmt.Errorf("%s is damaged and cannot be put aside: %w", path, err)
	}
	return d, nil
}

// KeepCopy is PutAside for a file that is to stay where it is, or lies where nothing
// can be put: a copy goes into a folder below dir, which is given to Damages.
func KeepCopy(path, dir string) (Damaged, error) {
	d := damaged(path, filepath.Join(dir, asideFolder))
	text, err := os.ReadFile(path)
	if err == nil {
		err = Write(d.Aside, text)
	}
	if err != nil {
		return d, fmt.Errorf("%s is damaged and cannot be kept: %w", path, err)
	}
	return d, nil
}

// Damages are the files of these folders that were put aside and not removed
// since, in order of folder and name.
func Damages(dirs ...string) (all []Damaged) {
	for _, dir := range dirs {
		files, err := os.ReadDir(filepath.Join(dir, asideFolder))
		if err != nil {
			continue // mostly there is none
		}
		for _, f := range files {
			i := strings.LastIndex(f.Name(), "-")
			if i <= 0 {
				continue
			}
			since, err := time.Parse(stamp, f.Name()[i+1:])
			if err != nil {
				continue // somebody else's
			}
			all = append(all, Damaged{Path: filepath.Join(dir, f.Name()[:i]), Aside: filepath.Join(dir, asideFolder, f.Name()), Since: since})
		}
	}
	return all
}

// ErrInUse is wrapped when a folder belongs to another process.
var ErrInUse = errors.New("in use")

// inUse is ErrInUse with a sentence of its own.
type inUse string

func (e inUse) Error() string        { return string(e) }
func (e inUse) Is(target error) bool { return target == ErrInUse }

// Lock makes a folder, 0700, and keeps it for this process until release or its
// end. what names such a process, like "agent".
func Lock(dir, what string) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOSPC) {
		// Somebody else cannot have it either, unless it was there before.
		f, err = os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return func() {}, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		owner := make([]byte, 32)
		n, _ := f.Read(owner)
		f.Close()
		by := "another " + what
		if text := strings.TrimSpace(string(owner[:n])); text != "" {
			by += " (process " + text + ")"
		}
		return nil, inUse(fmt.Sprintf("%s uses %s: stop it, or give this one folders of its own", by, dir))
	}
	// For the message above; without it the lock holds all the same.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	}
	return func() { f.Close() }, nil
}
