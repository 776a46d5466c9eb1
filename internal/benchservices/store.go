package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"

	"github.com/weft-mesh/weft/api"
	"github.com/weft-mesh/weft/lab"
)

// store is an API server to which services are written.
type store interface {
	// create creates services and their slices.
	create(ctx context.Context, services []*corev1.Service, slices []*discoveryv1.EndpointSlice) error
	// replace changes a slice.
	replace(ctx context.Context, slice *discoveryv1.EndpointSlice) error
}

// throughOperator is a transport from the operator's machine, which reaches every server.
func throughOperator(l *lab.Lab, conf *tls.Config) *http.Transport {
	return &http.Transport{TLSClientConfig: conf, DialContext: func(ctx context.Context, network, addr string) (c net.Conn, err error) {
		err = l.Operator.Do(func() (err error) {
			c, err = (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, addr)
			return err
		})
		return c, err
	}}
}

// request sends a document and reads the answer into out, unless that is nil.
func request(ctx context.Context, c *http.Client, method, url, token string, body []byte, out any) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode >= 300 {
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, strings.TrimSpace(string(text[:min(len(text), 500)])))
	}
	if out != nil {
		return json.Unmarshal(text, out)
	}
	return nil
}

// weftStore is Weft's API server.
type weftStore struct {
	client *http.Client
	server string
}

func newWeftStore(l *lab.Lab) (*weftStore, error) {
	conf, err := api.LoadConfig(l.ConfigPath())
	if err != nil {
		return nil, err
	}
	x, err := conf.Context(weftCluster)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(x.CA))
	pair, err := tls.X509KeyPair([]byte(x.Cert), []byte(x.Key))
	if err != nil {
		return nil, err
	}
	t := throughOperator(l, &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13})
	return &weftStore{&http.Client{Transport: t}, x.Server}, nil
}

func (s *weftStore) apply(ctx context.Context, documents ...[]byte) error {
	return request(ctx, s.client, http.MethodPost, s.server+"/v1/apply", "", bytes.Join(documents, []byte("\n---\n")), nil)
}

// perManifest is how many services one request applies.
const perManifest = 2000

func (s *weftStore) create(ctx context.Context, services []*corev1.Service, slices []*discoveryv1.EndpointSlice) error {
	for from := 0; from < len(services); from += perManifest {
		var documents [][]byte
		for i := from; i < min(len(services), from+perManifest); i++ {
			documents = append(documents, encode(services[i]), encode(slices[i]))
		}
		if err := s.apply(ctx, documents...); err != nil {
			return err
		}
	}
	return nil
}

func (s *weftStore) replace(ctx context.Context, slice *discoveryv1.EndpointSlice) error {
	return s.apply(ctx, encode(slice))
}

// podAddr is the address of a pod, once its agent has given it one.
func (s *weftStore) podAddr(ctx context.Context, name string) (netip.Addr, error) {
	var list struct {
		Items []corev1.Pod `json:"items"`
	}
	if err := request(ctx, s.client, http.MethodGet, s.server+"/v1/objects/pods?namespace=default", "", nil, &list); err != nil {
		return netip.Addr{}, err
	}
	for _, p := range list.Items {
		if p.Name == name {
			return netip.ParseAddr(p.Status.PodIP)
		}
	}
	return netip.Addr{}, fmt.Errorf("there is no pod %s", name)
}

// kubeStore is Kubernetes' API server.
type kubeStore struct {
	client  *http.Client
	server  string
	token   string
	machine *lab.Node // with etcd on its loopback
}

func newKubeStore(l *lab.Lab, server *lab.Node, token string) *kubeStore {
	// Its certificate is its own, made at its start.
	t := throughOperator(l, &tls.Config{InsecureSkipVerify: true})
	return &kubeStore{&http.Client{Transport: t}, "https://" + netip.AddrPortFrom(server.Addr, kubePort).String(), token, server}
}

const (
	slicesPath = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
	etcdAddr   = "127.0.0.1:2379"
)

func (s *kubeStore) do(ctx context.Context, method, path string, object any) error {
	var body []byte
	if object != nil {
		body = encode(object)
	}
	return request(ctx, s.client, method, s.server+path, s.token, body, nil)
}

// create writes to etcd, what the API server would write there: the API server itself takes
// milliseconds for each service, a minute and a half for 10,000.
func (s *kubeStore) create(ctx context.Context, services []*corev1.Service, slices []*discoveryv1.EndpointSlice) error {
	etcd, err := clientv3.New(clientv3.Config{Context: ctx, Endpoints: []string{etcdAddr}, DialOptions: []grpc.DialOption{
		grpc.WithContextDialer(func(ctx context.Context, addr string) (c net.Conn, err error) {
			err = s.machine.Do(func() (err error) {
				c, err = (&net.Dialer{}).DialContext(ctx, "tcp", addr)
				return err
			})
			return c, err
		})}})
	if err != nil {
		return err
	}
	defer etcd.Close()
	for from := 0; from < len(services); from += perTransaction {
		var puts []clientv3.Op
		for i := from; i < min(len(services), from+perTransaction); i++ {
			puts = append(puts, stored("/registry/services/specs/default/", services[i]), stored("/registry/endpointslices/default/", slices[i]))
		}
		if _, err := etcd.Txn(ctx).Then(puts...).Commit(); err != nil {
			return err
		}
	}
	return nil
}

// perTransaction is how many services one of etcd's transactions has, which may have 128
// changes by default.
const perTransaction = 50

// stored is the write of an object as the API server stores it, with what it adds.
func stored(under string, object metav1.Object) clientv3.Op {
	object.SetUID(uuid.NewUUID())
	object.SetCreationTimestamp(metav1.Now())
	return clientv3.OpPut(under+object.GetName(), string(encode(object)))
}

func (s *kubeStore) replace(ctx context.Context, slice *discoveryv1.EndpointSlice) error {
	return s.do(ctx, http.MethodPut, slicesPath+"/"+slice.Name, slice)
}
