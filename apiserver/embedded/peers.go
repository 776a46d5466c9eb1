package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/weft-mesh/weft/apiserver/authority"
)

// Members of one store meet on a port of their own. What comes there is believed without
// further checks, so only certificates of the user authority.Member are let in, from an
// address that is in the certificate.

// Peers says how a member meets the others.
type Peers struct {
	// Listen is where it listens for them, host:port. Advertise (host:port) is where
	// they reach it.
	Listen, Advertise string
	// Cert and Key are files with its certificate, of the user authority.Member.
	Cert, Key string
	// Join are the URLs for members, by name, of all members of the store that it joins,
	// its own included. nil: it goes on with the data it has, or begins a new store.
	Join map[string]string
}

// URL is the URL at which the other members reach it; loneURL if there are none.
func (p *Peers) URL() string {
	if p == nil {
		return loneURL
	}
	return "https://" + p.Advertise
}

// Elections among several members wait for answers over the network, and from machines that
// are busy: one that stands still for a second has not died, and a change of leader stops all
// writes. After a death, another member leads within 2 to 4 s. The timing is the same for all
// members, and from the start, because it cannot change once others have joined.
const (
	tick     = 200 * time.Millisecond
	election = 2 * time.Second
)

// meet configures how members meet, and reports whether there are several. listed is how
// many the data knows of.
func (p *Peers) meet(conf *embed.Config, ca string, listed int) (several bool) {
	conf.PeerTLSInfo = conf.ClientTLSInfo
	if p == nil {
		// A single member listens on loopback on any port, and its advertised address
		// only identifies it in the list of members.
		conf.ListenPeerUrls = []url.URL{{Scheme: "https", Host: "127.0.0.1:0"}}
		conf.AdvertisePeerUrls = []url.URL{{Scheme: "https", Host: loneHost}}
		// Nor does it have rivals in an election, so it waits for them as briefly as
		// etcd allows.
		conf.TickMs, conf.ElectionMs = 20, 200
	} else {
		listen := p.Listen
		if strings.HasPrefix(listen, ":") {
			listen = "0.0.0.0" + listen
		}
		conf.ListenPeerUrls = []url.URL{{Scheme: "https", Host: listen}}
		conf.AdvertisePeerUrls = []url.URL{{Scheme: "https", Host: p.Advertise}}
		conf.PeerTLSInfo.CertFile, conf.PeerTLSInfo.KeyFile, conf.PeerTLSInfo.TrustedCAFile = p.Cert, p.Key, ca
		conf.PeerTLSInfo.AllowedCNs = []string{authority.Member}
		conf.TickMs, conf.ElectionMs = uint(tick.Milliseconds()), uint(election.Milliseconds())
	}
	conf.InitialCluster = conf.Name + "=" + p.URL()
	conf.MaxLearners = mostLearners
	if p != nil && p.Join != nil {
		all := maps.Clone(p.Join)
		all[conf.Name] = p.URL()
		var texts []string
		for _, name := range slices.Sorted(maps.Keys(all)) {
			texts = append(texts, name+"="+all[name])
		}
		conf.InitialCluster, conf.ClusterState = strings.Join(texts, ","), embed.ClusterStateFlagExisting
		return true
	}
	return listed > 1
}

// mostLearners is how many may join at the same time. A learner has no vote, so it does no
// harm.
const mostLearners = 6

// waitingLine is how often the log says that a member waits for others.
const waitingLine = 10 * time.Second

// Listing is a member as the data on disk lists it.
type Listing struct {
	ID      uint64   `json:"id"`
	Name    string   `json:"name"`
	Clients []string `json:"clientURLs"`
}

// Listed returns the members that the data in a folder lists. The list may be a little old,
// and is empty if there is no data.
func Listed(dir string) (all []Listing, err error) {
	path := filepath.Join(dir, "member", "snap", "db")
	if info, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) || err == nil && info.Size() == 0 {
		return nil, nil
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("read the members in %s: %w", path, err)
	}
	defer db.Close()
	return all, db.View(func(tx *bbolt.Tx) error {
		members := tx.Bucket(schema.Members.Name())
		if members == nil {
			return nil
		}
		return members.ForEach(func(_, text []byte) error {
			var one Listing
			if err := json.Unmarshal(text, &one); err != nil {
				return fmt.Errorf("read the members in %s: %w", path, err)
			}
			all = append(all, one)
			return nil
		})
	})
}

// ID is the member's number in the store.
func (s *Server) ID() uint64 { return uint64(s.etcd.Server.MemberID()) }

// Others are the URLs at which clients reach the other members.
func (s *Server) Others() (all []string) {
	for _, m := range s.etcd.Server.Cluster().Members() {
		if m.ID != s.etcd.Server.MemberID() {
			all = append(all, m.ClientURLs...)
		}
	}
	return all
}

// Learner reports whether the member has no vote yet.
func (s *Server) Learner() bool { return s.etcd.Server.IsLearner() }

// ErrRemoved: the member was removed from its store. What is in its folder is of no use to
// anyone any more.
var ErrRemoved = errors.New("this member was removed from the store")

// removedMark is a file in the folder of a member that was removed.
const removedMark = "removed"

// checkRemoved refuses the data of a member that was removed. etcd itself may fail to see
// it: others tell it only while they can be reached.
func checkRemoved(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, removedMark)); err != nil {
		return nil
	}
	return ErrRemoved
}

// ErrListed: the members of the store are not those that Peers.Join names. Nothing was begun.
var ErrListed = errors.New("the members of the store have changed meanwhile")

// Begun reports whether a folder holds the data of a member.
func Begun(dir string) bool {
	logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	return err == nil && len(logs) > 0
}

var errStopped = errors.New("it stopped by itself; the log above says why")

// stopped returns why the member stopped by itself: err, unless it was removed.
func (s *Server) stopped(err error) error {
	if !s.removed.Load() {
		return err
	}
	if err := os.WriteFile(filepath.Join(s.dir, removedMark), nil, 0o600); err != nil {
		return fmt.Errorf("%w (%w)", ErrRemoved, err)
	}
	return ErrRemoved
}
