// Package statefile keeps files that outlive a process: it writes them atomically,
// sets damaged ones aside instead of losing them, and locks a folder of them for one
// process at a time.
//
// What the files contain, and how to carry on without one, is up to the caller.
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

// Write replaces a file atomically: after a crash at any point it holds either the
// old content or the new. The file has mode 0600; missing folders are created with
// mode 0700.
func Write(path string, content []byte) error {
	return Create(path, func(f *os.File) error {
		_, err := f.Write(content)
		return err
	})
}

// Create is Write for content that is not at hand: fill writes it to a temporary file in
// the same folder. If fill fails, nothing is replaced.
func Create(path string, fill func(*os.File) error) (err error) {
	dir := filepath.Dir(path)
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", path, withoutTemporary(err))
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, temporary+"*") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	err = fill(f)
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

// Append adds to the end of a file that exists and returns when the disk has it. After a
// crash, or a failure, the file may end with a part of content: whoever reads it must be
// able to tell.
func Append(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// temporary begins the names of files that are not complete yet.
const temporary = ".new-"

// withoutTemporary leaves the name of the temporary file out of an error: it tells nobody
// anything, and makes each try fail with another text.
func withoutTemporary(err error) error {
	var link *os.LinkError
	var path *fs.PathError
	switch {
	case errors.As(err, &link):
		return link.Err
	case errors.As(err, &path) && strings.HasPrefix(filepath.Base(path.Path), temporary):
		return path.Err
	}
	return err
}

// Damaged files are kept in asideFolder, next to where they were, with the time
// appended to their name in the format stamp.
const (
	asideFolder = "damaged"
	stamp       = "20060102T150405.000"
)

// Damaged is a file that was put aside.
type Damaged struct {
	Path  string // where it was
	Aside string // where it is now
	Since time.Time
}

// String says what happened to the file.
func (d Damaged) String() string {
	return fmt.Sprintf("%s is damaged and was put aside as %s", d.Path, d.Aside)
}

// damaged chooses an unused name in dir for a file found damaged now. The name
// carries the time in milliseconds; if it is taken, the next free millisecond is
// used.
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

// PutAside moves a damaged file into a folder next to it, where an operator can
// examine it.
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

// KeepCopy is PutAside for a file that must stay where it is or whose folder is not
// writable: it copies the file into a folder below dir. Pass dir to Damages to find
// the copy.
func KeepCopy(path, dir string) (Damaged, error) {
	d := damaged(path, filepath.Join(dir, asideFolder))
	text, err := os.ReadFile(path)
	if err == nil {
		err = Write(d.Aside, text)
	}
	if err != nil {
		return d, fmt.Errorf("%s is damaged and cannot be copied: %w", path, err)
	}
	return d, nil
}

// Damages lists the files of these folders that were put aside and have not been
// removed since, ordered by folder and name.
func Damages(dirs ...string) (all []Damaged) {
	for _, dir := range dirs {
		files, err := os.ReadDir(filepath.Join(dir, asideFolder))
		if err != nil {
			continue // usually there is no such folder
		}
		for _, f := range files {
			i := strings.LastIndex(f.Name(), "-")
			if i <= 0 {
				continue
			}
			since, err := time.Parse(stamp, f.Name()[i+1:])
			if err != nil {
				continue // not one of ours
			}
			all = append(all, Damaged{Path: filepath.Join(dir, f.Name()[:i]), Aside: filepath.Join(dir, asideFolder, f.Name()), Since: since})
		}
	}
	return all
}

// ErrInUse is wrapped when another process holds the folder or the machine.
var ErrInUse = errors.New("in use")

// inUse is ErrInUse with its own message.
type inUse string

func (e inUse) Error() string        { return string(e) }
func (e inUse) Is(target error) bool { return target == ErrInUse }

// heldBy is the process that holds a lock, "" if it is not known.
type heldBy string

func (h heldBy) Error() string { return "held by process " + string(h) }

func (h heldBy) name(what string) string {
	if h == "" {
		return what
	}
	return fmt.Sprintf("%s (process %s)", what, string(h))
}

// Lock reserves a folder for this process until it calls release or exits, creating
// it with mode 0700 if needed. what names the kind of process in messages, such as
// "agent". The error wraps ErrInUse if another process holds the folder.
func Lock(dir, what string) (release func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	release, err = hold(filepath.Join(dir, "lock"))
	var by heldBy
	if errors.As(err, &by) {
		return nil, inUse(fmt.Sprintf("another %s uses %s: stop it, or give this one folders of its own", by.name(what), dir))
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return release, nil
}

// hold locks a file, creating it if needed, until release is called or the process
// exits. If another process has it, the error is heldBy.
func hold(path string) (release func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.ENOSPC) {
		// If the lock file does not exist, no other process can create it either.
		f, err = os.Open(path)
		if errors.Is(err, fs.ErrNotExist) {
			return func() {}, nil
		}
	}
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		owner := make([]byte, 32)
		n, _ := f.Read(owner)
		err = heldBy(strings.TrimSpace(string(owner[:n])))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	// Only for the message; the lock works without it.
	if f.Truncate(0) == nil {
		_, _ = f.WriteAt(fmt.Appendln(nil, os.Getpid()), 0)
	}
	return func() { f.Close() }, nil
}
