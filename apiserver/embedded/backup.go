package embedded

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/util/uuid"
)

// A backup is etcd's snapshot: its database followed by the SHA-256 of it. etcd's sizes are
// multiples of a sector, so a file without the sum cannot pass for one with it.
//
// A restored store keeps its revisions. Raising them, as etcdutl can, would make those that
// the backup lacks look like part of its history; the lineage (package wire) tells our own
// readers that the store went back. Cilium's readers notice by etcd's cluster ID, which is a
// new one. It also keeps members that were not restored from joining one that was.

// sector is the unit of etcd's file sizes.
const sector = 512

// walSpace is what etcd allocates for a new log: the first file and the next.
const walSpace = 2 * 64 << 20

// ErrNoBackup is wrapped when a file is not a whole backup of an etcd.
var ErrNoBackup = errors.New("not a backup")

// Unusable is ErrNoBackup with what is wrong with the file, to follow its name.
type Unusable string

func (u Unusable) Error() string { return string(u) }

// Is makes every Unusable an ErrNoBackup.
func (u Unusable) Is(target error) bool { return target == ErrNoBackup }

func damagedBackup(cause any) error { return Unusable(fmt.Sprintf("is damaged: %v", cause)) }

// Backup describes a backup.
type Backup struct {
	// Revision is the store's at the moment of the backup; Keys is how many keys it had.
	Revision int64
	Keys     int
	// Bytes is the size of the file.
	Bytes int64
	// Values are those of the keys that were asked for and exist.
	Values map[string][]byte
}

// ReadBackup checks that a file is a whole backup, and reads the values of some keys.
// Errors that are not the file system's wrap ErrNoBackup, and their text follows the file's
// name: "is damaged".
func ReadBackup(path string, keys ...string) (b Backup, err error) {
	defer func() {
		if cause := recover(); cause != nil { // the database library panics where it should not
			err = damagedBackup(cause)
		}
	}()
	if b.Bytes, err = checkSum(path); err != nil {
		return b, err
	}
	if b.Values, err = valuesIn(path, keys); err != nil {
		return b, err
	}
	status, err := snapshot.NewV3(zap.NewNop()).Status(path)
	if err != nil {
		return b, damagedBackup(err)
	}
	b.Revision, b.Keys = status.Revision, status.TotalKey
	return b, nil
}

// checkSum compares a file with the sum at its end, and returns its size. It reads nothing
// else, so what is damaged never gets to the database library.
func checkSum(path string) (size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, Unusable("is not a file")
	}
	return info.Size(), sumMatches(f, info.Size())
}

// sumMatches compares a backup of so many bytes with the sum at its end.
func sumMatches(f io.Reader, size int64) error {
	head := make([]byte, 4096)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return err
	}
	head = head[:n]
	switch {
	case !isDatabase(head):
		return Unusable("is not a backup of a store")
	case size%sector != sha256.Size:
		return Unusable("does not end with its checksum: it was cut short, or `weft backup` did not write it")
	}
	sum, rest := sha256.New(), io.MultiReader(bytes.NewReader(head), f)
	if _, err := io.CopyN(sum, rest, size-sha256.Size); err != nil {
		return err
	}
	want := make([]byte, sha256.Size)
	if _, err := io.ReadFull(rest, want); err != nil {
		return err
	}
	if !bytes.Equal(want, sum.Sum(nil)) {
		return Unusable("is damaged: it does not match its checksum")
	}
	return nil
}

// isDatabase looks for the database's magic number in its first page.
func isDatabase(head []byte) bool {
	return len(head) >= 20 && bytes.Equal(head[16:20], []byte{0xed, 0xda, 0x0c, 0xed})
}

// valuesIn returns the newest values of keys in a database. Those that do not exist are
// missing.
func valuesIn(path string, keys []string) (map[string][]byte, error) {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return nil, damagedBackup(err)
	}
	defer db.Close()
	left := map[string]bool{}
	for _, key := range keys {
		left[key] = true
	}
	values := map[string][]byte{}
	return values, db.View(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(schema.Key.Name())
		if bucket == nil {
			return Unusable("is a database, but not an etcd's")
		}
		// The newest revision comes last.
		c := bucket.Cursor()
		for revision, text := c.Last(); revision != nil && len(left) > 0; revision, text = c.Prev() {
			var kv mvccpb.KeyValue
			if err := proto.Unmarshal(text, &kv); err != nil {
				return damagedBackup(err)
			}
			if key := string(kv.Key); left[key] {
				delete(left, key)
				if !mvcc.IsTombstone(revision) {
					values[key] = bytes.Clone(kv.Value)
				}
			}
		}
		return nil
	})
}

// Restore makes the data of a new etcd of one member from a backup, in a folder that does not
// exist yet. If it fails, the folder is gone again.
func Restore(backup, dir string, log *slog.Logger) (err error) {
	size, err := checkSum(backup)
	if err != nil {
		return err
	}
	if err := checkSpace(filepath.Dir(dir), size+walSpace); err != nil {
		return err
	}
	defer func() {
		if cause := recover(); cause != nil {
			err = fmt.Errorf("restore the store: %v", cause)
		}
		if err != nil {
			err = errors.Join(err, os.RemoveAll(dir))
		}
	}()
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	// etcd's fatal errors, such as a full disk, end the process otherwise.
	logger := zap.New(logCore{log: log, closing: new(atomic.Bool), removed: new(atomic.Bool)}, zap.WithFatalHook(zapcore.WriteThenPanic))
	err = snapshot.NewV3(logger).Restore(snapshot.RestoreConfig{
		SnapshotPath: backup, OutputDataDir: dir, Name: defaultName,
		PeerURLs: []string{loneURL}, InitialCluster: defaultName + "=" + loneURL,
		InitialClusterToken: string(uuid.NewUUID()),
	})
	if err != nil {
		return fmt.Errorf("restore the store: %w", err)
	}
	return nil
}

// checkSpace refuses what does not fit, before anything is written.
func checkSpace(dir string, bytes int64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("read the free space of %s: %w", dir, err)
	}
	if left := int64(s.Bavail) * s.Bsize; left < bytes {
		return fmt.Errorf("%s has %d MiB left, and the restored store needs %d MiB: make space there", dir, left>>20, bytes>>20)
	}
	return nil
}
