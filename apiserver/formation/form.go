package formation

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/yaml"

	"github.com/weft-mesh/weft/api"
)

// Servers is the API of the cluster's other API servers; *api.Client is one.
type Servers interface {
	Servers(context.Context) (*api.ServerList, error)
	AddServer(context.Context, api.ServerRequest) (*api.ServerBundle, error)
	RemoveServer(ctx context.Context, name string) (*api.ServerChange, error)
	Close()
}

// Config of an API server with an empty disk.
type Config struct {
	Client    kubernetes.Interface
	Namespace string
	Cluster   string
	Name      string
	Address   netip.Addr
	// Port is where its part of the store listens for the others; 0: it does not, and has
	// the store alone.
	Port uint16
	// Dial connects to the other API servers.
	Dial func(api.Context) (Servers, error)
	Log  *slog.Logger
}

// Pods of API servers have this label in the chart.
const podSelector = "app.kubernetes.io/component=apiserver"

// turn is the pause between two attempts, patience how long others have to answer.
const (
	turn     = 2 * time.Second
	patience = 4 * time.Second
)

// ErrElsewhere says that the store is on another node, and stays there.
var ErrElsewhere = errors.New("this cluster's store is on another node")

// Form returns once an API server with an empty disk may start: with a bundle it joins the
// others, and without one it begins the store. Until then it tries again; it gives up only
// with ErrElsewhere, or when ctx ends.
func Form(ctx context.Context, c Config) (*api.ServerBundle, error) {
	told := ""
	for {
		bundle, done, err := c.attempt(ctx)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case done:
			return bundle, nil
		case errors.Is(err, ErrElsewhere):
			return nil, err
		case !errors.Is(err, errChanged) && err.Error() != told:
			told = err.Error()
			c.Log.Warn("this API server has no store, and waits", "why", told)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(turn):
		}
	}
}

// attempt is one look at what Kubernetes and the others say. Without an error, it is done.
func (c Config) attempt(ctx context.Context) (*api.ServerBundle, bool, error) {
	r := records{c.Client, c.Namespace}
	record, is, err := r.read(ctx)
	if err != nil {
		return nil, false, err
	}
	if m, ours := record.Members[c.Name]; ours && !m.Empty {
		m.Empty = true
		record.Members = maps.Clone(record.Members)
		record.Members[c.Name] = m
		return nil, false, cmp.Or(r.write(ctx, is, record), errChanged)
	}
	operator, known, err := c.operator(ctx)
	if err != nil {
		return nil, false, err
	}
	if known {
		s, err := c.Dial(operator)
		if err != nil {
			return nil, false, fmt.Errorf("Secret %s/%s: %w", c.Namespace, api.OperatorSecret, err)
		}
		defer s.Close()
		asking, cancel := context.WithTimeout(ctx, patience)
		list, err := s.Servers(asking)
		cancel()
		if err == nil && list.Cluster == c.Cluster {
			b, err := c.join(ctx, s, list, operator.Server)
			return b, err == nil, err
		}
	}
	if is == nil && known {
		return nil, false, fmt.Errorf("%w: Secret %s/%s names its API server, %s, which does not answer: run it there, or, if its node is lost, delete that Secret and restart this API server", ErrElsewhere, c.Namespace, api.OperatorSecret, operator.Server)
	}
	gone, err := c.goneNodes(ctx)
	if err != nil {
		return nil, false, err
	}
	next, why := decide(record, is != nil, gone)
	if next == wait {
		if _, ours := record.Members[c.Name]; !ours && c.Port == 0 {
			return nil, false, fmt.Errorf("%w (%s): run it there (apiServer.nodeSelector of the chart), or, if that node is lost for good, delete it from Kubernetes", ErrElsewhere, why)
		}
		return nil, false, fmt.Errorf("%s: start them; the node of one that is lost for good has to be deleted from Kubernetes", why)
	}
	if err := r.write(ctx, is, Record{Members: map[string]Member{c.Name: {Address: c.Address}}}); err != nil {
		return nil, false, err
	}
	return nil, true, nil
}

// operator is the operator's context, with which the others are asked.
func (c Config) operator(ctx context.Context) (x api.Context, known bool, err error) {
	secret, err := c.Client.CoreV1().Secrets(c.Namespace).Get(ctx, api.OperatorSecret, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return x, false, nil
	}
	if err != nil {
		return x, false, fmt.Errorf("Secret %s/%s: %w", c.Namespace, api.OperatorSecret, err)
	}
	var file api.Config
	if err := yaml.Unmarshal(secret.Data[api.OperatorContextKey], &file); err != nil {
		return x, false, nil // it is written again
	}
	x, err = file.Context(c.Cluster)
	return x, err == nil, nil
}

// goneNodes says of a member whether Kubernetes no longer has its node.
func (c Config) goneNodes(ctx context.Context) (func(Member) bool, error) {
	nodes, err := c.Client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("list nodes: %w", err)
	}
	there := map[string]bool{}
	for _, n := range nodes.Items {
		for _, a := range n.Status.Addresses {
			there[a.Address] = true
		}
	}
	return func(m Member) bool { return !there[m.Address.String()] }, nil
}

// join has the others admit this API server. What it was before, and what a pod of which
// nothing is left was, goes first.
func (c Config) join(ctx context.Context, s Servers, list *api.ServerList, at string) (*api.ServerBundle, error) {
	if c.Port == 0 {
		return nil, fmt.Errorf("%w, that of the API server at %s: run it there (apiServer.nodeSelector of the chart), or set apiServer.replicas", ErrElsewhere, at)
	}
	left, err := c.left(ctx, list)
	if err != nil {
		return nil, err
	}
	for _, name := range left {
		if _, err := s.RemoveServer(ctx, name); err != nil {
			return nil, fmt.Errorf("remove API server %s, whose part of the store is lost: %w", name, err)
		}
		c.Log.Info("an API server whose part of the store is lost was removed", "server", name)
	}
	// The others have to know before it has a part of the store.
	r := records{c.Client, c.Namespace}
	record, is, err := r.read(ctx)
	if err != nil {
		return nil, err
	}
	next := Record{Members: maps.Clone(record.Members)}
	if next.Members == nil {
		next.Members = map[string]Member{}
	}
	next.Members[c.Name] = Member{Address: c.Address}
	for _, name := range left {
		if name != c.Name {
			delete(next.Members, name)
		}
	}
	if err := r.write(ctx, is, next); err != nil {
		return nil, err
	}
	b, err := s.AddServer(ctx, api.ServerRequest{Name: c.Name, Address: c.Address, Port: c.Port})
	if err != nil {
		return nil, fmt.Errorf("join the other API servers: %w", err)
	}
	return b, nil
}

// left are the members of the store that nobody has any longer: this one's from before, and
// those that are down on nodes that have no API server.
func (c Config) left(ctx context.Context, list *api.ServerList) (names []string, err error) {
	pods, err := c.Client.CoreV1().Pods(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: podSelector})
	if err != nil {
		return nil, fmt.Errorf("list the API servers' pods: %w", err)
	}
	has := func(address string) bool {
		return slices.ContainsFunc(pods.Items, func(p corev1.Pod) bool {
			return p.Status.HostIP == address || slices.ContainsFunc(p.Status.HostIPs, func(ip corev1.HostIP) bool { return ip.IP == address })
		})
	}
	for _, s := range list.Servers {
		host := strings.Trim(s.StoreAddress, "[]")
		if a, err := netip.ParseAddrPort(s.StoreAddress); err == nil {
			host = a.Addr().String()
		}
		switch {
		case s.StoreAddress == "" || s.Store == api.StoreUp || s.State == api.ServerInvited:
		case s.Name == c.Name, s.Store == api.StoreDown && !has(host):
			names = append(names, s.Name)
		}
	}
	return names, nil
}
