package main

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/http"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// backup sends the smallest database of an etcd that holds a cluster. West's server dies
// halfway.
func (f *fake) backup(w http.ResponseWriter, _ *http.Request) {
	text, err := f.database()
	if err != nil {
		w.WriteHeader(http.StatusInternalServerError)
		fmt.Fprint(w, err)
		return
	}
	if f.name == "west" {
		_, _ = w.Write(text[:len(text)/2])
		panic(http.ErrAbortHandler)
	}
	sum := sha256.Sum256(text)
	_, _ = w.Write(append(text, sum[:]...))
}

func (f *fake) database() ([]byte, error) {
	dir, err := os.MkdirTemp("", "weft-backup-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "db")
	db, err := bbolt.Open(file, 0o600, nil)
	if err != nil {
		return nil, err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		keys, err := tx.CreateBucketIfNotExists([]byte("key"))
		if err != nil {
			return err
		}
		if _, err := tx.CreateBucketIfNotExists([]byte("meta")); err != nil {
			return err
		}
		value, err := proto.Marshal(&mvccpb.KeyValue{
			Key: []byte("weft/state/cluster"), Value: fmt.Appendf(nil, `{"name":%q,"id":%d,"generation":"g1"}`, f.name, f.id),
		})
		if err != nil {
			return err
		}
		// A revision: its number, "_", and its place in a transaction.
		revision := binary.BigEndian.AppendUint64(append(binary.BigEndian.AppendUint64(nil, 431), '_'), 0)
		return keys.Put(revision, value)
	})
	if err != nil {
		return nil, err
	}
	if err := db.Close(); err != nil {
		return nil, err
	}
	return os.ReadFile(file)
}
