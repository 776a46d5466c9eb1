package apiserver

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/apiserver/authority"
	"github.com/weft-mesh/weft/apiserver/embedded"
	"github.com/weft-mesh/weft/statefile"
	"github.com/weft-mesh/weft/wire"
)

// Restoring replaces two folders of the data folder: the embedded etcd, and the certificate
// authority if it is not the backup's.
//
//	check the backup ──► build both aside ──► exchange etcd ──► exchange pki ──► rename the old ones
//
// Each exchange is one step. After a crash between the two, the API server refuses to start
// with an authority that is not its store's, and restoring again completes it.

// ErrOtherCluster is wrapped when a backup is not of the cluster that is configured.
var ErrOtherCluster = errors.New("backup of another cluster")

// otherCluster is ErrOtherCluster with its own message.
type otherCluster string

func (o otherCluster) Error() string        { return string(o) }
func (o otherCluster) Is(target error) bool { return target == ErrOtherCluster }

// ReadBackup checks that a file is a whole backup of a cluster's store, and describes it.
// The text of an error that wraps ErrNoBackup follows the file's name.
func ReadBackup(path string) (api.Backup, error) {
	b, _, err := readBackup(path)
	return b, err
}

// ErrNoBackup is wrapped when a file is not a whole backup of a cluster.
var ErrNoBackup = embedded.ErrNoBackup

// readBackup is ReadBackup; it also returns the cluster's authority, nil if the store did
// not hold it.
func readBackup(path string) (api.Backup, *authority.Secret, error) {
	raw, err := embedded.ReadBackup(path, wire.ClusterKey, wire.AuthorityKey)
	if err != nil {
		return api.Backup{}, nil, err
	}
	c := wire.Cluster{}
	if err := json.Unmarshal(raw.Values[wire.ClusterKey], &c); err != nil || c.Name == "" {
		return api.Backup{}, nil, embedded.Unusable("is the backup of an etcd that holds no cluster")
	}
	b := api.Backup{Cluster: c.Name, ID: uint32(c.ID), Generation: c.Generation, File: path, Revision: raw.Revision, Keys: raw.Keys, Bytes: raw.Bytes}
	text, ok := raw.Values[wire.AuthorityKey]
	if !ok {
		return b, nil, nil
	}
	secret, err := wire.Unmarshal[authority.Secret](text)
	if err != nil {
		return b, nil, embedded.Unusable("is damaged: its certificate authority cannot be read")
	}
	return b, &secret, nil
}

// Restore replaces the embedded etcd in conf.DataDir by a backup. What was there before is
// put aside. It fails, and then has changed nothing, if an API server uses the folder, if
// the backup is not whole, if another API server of the cluster runs, and, unless force is set, if it is of another cluster.
func Restore(conf Config, backup string, force bool) (out api.Restored, err error) {
	if len(conf.EtcdEndpoints) > 0 {
		return out, errors.New("this API server uses an existing etcd, which is not restored from here: stop the API servers, run `etcdutl snapshot restore` for each of its members, then start them again")
	}
	b, secret, err := readBackup(backup)
	if errors.Is(err, ErrNoBackup) {
		return out, fmt.Errorf("%s %w", backup, err)
	}
	if err != nil {
		return out, err
	}
	if !force && (b.Cluster != conf.Cluster || b.ID != conf.ID) {
		return out, otherCluster(fmt.Sprintf("%s is of cluster %s (ID %d), and this API server is configured for %s (ID %d)", backup, b.Cluster, b.ID, conf.Cluster, conf.ID))
	}
	release, err := statefile.Lock(conf.DataDir, "API server")
	if err != nil {
		return out, err
	}
	defer release()
	x, _ := adminContext(conf)
	if others := othersOf(context.Background(), x); len(others) > 0 {
		return out, fmt.Errorf("cluster %s still runs: its API server %s answers, with the store that is there now, which would go on beside the restored one: stop it first", conf.Cluster, list(others))
	}
	r := restoration{dir: conf.DataDir, log: cmp.Or(conf.Log, slog.New(slog.DiscardHandler))}
	defer r.sweep()
	if r.work, err = os.MkdirTemp(conf.DataDir, ".restore-"); err != nil {
		return out, err
	}
	if err := embedded.Restore(backup, filepath.Join(r.work, "etcd"), r.log); err != nil {
		return out, err
	}
	newAuthority, err := r.authority(b.Cluster, secret)
	if err != nil {
		return out, err
	}
	out = api.Restored{Backup: b, DataDir: conf.DataDir, Others: x.Servers}
	if out.Aside, err = r.replace("etcd"); err != nil {
		return out, err
	}
	if newAuthority {
		out.Authority = true
		if out.AuthorityAside, err = r.replace("pki"); err != nil {
			return out, errors.Join(err, r.undo("etcd", out.Aside))
		}
	}
	return out, nil
}

// restoration is the work on one data folder.
type restoration struct {
	dir  string // the data folder
	work string // in it, for what is not in place yet
	log  *slog.Logger
}

// authority builds the backup's authority in the work folder, and reports whether it has
// to replace the one that is there.
func (r *restoration) authority(cluster string, secret *authority.Secret) (replace bool, err error) {
	pki := filepath.Join(r.dir, "pki")
	key, err := os.ReadFile(filepath.Join(pki, "ca.key"))
	switch {
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return false, err
	case secret == nil && err != nil:
		return false, fmt.Errorf("the backup does not hold the certificate authority, and %s is gone: restore that folder first", pki)
	case secret == nil, err == nil && bytes.Equal(key, secret.Key):
		return false, nil
	}
	a, err := authority.Write(filepath.Join(r.work, "pki"), cluster, *secret)
	if err != nil {
		return false, err
	}
	// How many peers were removed since is not known; a peer that is invited later must not
	// get the number of a certificate that was issued meanwhile.
	_, err = a.KeepRemovals(uint64(time.Now().Unix()))
	return err == nil, err
}

// replace puts a folder in place of the one with the same name in the data folder, and
// returns where that one is now: "" if there was none.
func (r *restoration) replace(name string) (aside string, err error) {
	from, to := filepath.Join(r.work, name), filepath.Join(r.dir, name)
	if _, err := os.Lstat(to); errors.Is(err, fs.ErrNotExist) {
		return "", r.synced(os.Rename(from, to))
	}
	if err := exchange(from, to); err != nil {
		return "", fmt.Errorf("put %s in place: %w", to, err)
	}
	for at := time.Now().UTC(); ; at = at.Add(time.Second) {
		aside = fmt.Sprintf("%s-before-%s", to, at.Format("20060102T150405"))
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	if err := os.Rename(from, aside); err != nil {
		err = fmt.Errorf("put %s aside: %w", to, err)
		if back := exchange(from, to); back != nil {
			r.work = "" // the old one is there
			err = errors.Join(err, fmt.Errorf("bring it back from %s: %w", from, back))
		}
		return "", err
	}
	return aside, r.synced(nil)
}

// exchange swaps two folders in one step where the file system can, so that a crash never
// leaves a data folder without a store, which would start as an empty one.
func exchange(a, b string) error {
	err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	between := a + ".swap"
	if err := os.Rename(b, between); err != nil {
		return err
	}
	if err := os.Rename(a, b); err != nil {
		return errors.Join(err, os.Rename(between, b))
	}
	return os.Rename(between, a)
}

// undo brings back what replace has put aside.
func (r *restoration) undo(name, aside string) error {
	to := filepath.Join(r.dir, name)
	if aside == "" {
		return os.RemoveAll(to)
	}
	if err := exchange(aside, to); err != nil {
		return fmt.Errorf("bring %s back from %s: %w", to, aside, err)
	}
	return os.RemoveAll(aside)
}

// synced makes renames in the data folder last, unless they failed.
func (r *restoration) synced(err error) error {
	if err != nil {
		return err
	}
	d, err := os.Open(r.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// sweep removes the work folder.
func (r *restoration) sweep() {
	if r.work == "" {
		return
	}
	if err := os.RemoveAll(r.work); err != nil {
		r.log.Warn("a temporary folder is left over; delete it", "folder", r.work, "err", err)
	}
}
