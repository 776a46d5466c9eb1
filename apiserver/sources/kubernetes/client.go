package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Access says how to reach a Kubernetes API server.
type Access struct {
	// Kubeconfig is a file, and Context one of its contexts; empty: its current one. Without
	// a file, this process runs in a pod of the cluster and uses its service account.
	Kubeconfig, Context string
}

// Config reads the access.
func (a Access) Config() (*rest.Config, error) {
	if a.Kubeconfig == "" {
		conf, err := rest.InClusterConfig()
		if errors.Is(err, rest.ErrNotInCluster) {
			return nil, errors.New("this process does not run in a pod of a Kubernetes cluster: give --kubeconfig")
		}
		return conf, err
	}
	loading := &clientcmd.ClientConfigLoadingRules{ExplicitPath: a.Kubeconfig}
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(loading, &clientcmd.ConfigOverrides{CurrentContext: a.Context}).ClientConfig()
}

// The rates of requests that are not watches. A term begins with one list of each resource;
// events of what is refused come on top.
const (
	requestsPerSecond = 20
	requestsAtOnce    = 40
)

// client makes the requests. Several goroutines may use it.
type client struct {
	host    string
	http    *http.Client
	groups  map[schema.GroupVersion]rest.Interface
	dynamic dynamic.Interface
	meta    metadata.Interface
	core    rest.Interface
}

func newClient(conf *rest.Config) (*client, error) {
	conf = rest.CopyConfig(conf)
	conf.UserAgent, conf.QPS, conf.Burst = "weft-apiserver", requestsPerSecond, requestsAtOnce
	// All resources share the connections, and the limit.
	shared, err := rest.HTTPClientFor(conf)
	if err != nil {
		return nil, err
	}
	c := &client{host: conf.Host, http: shared, groups: map[schema.GroupVersion]rest.Interface{}}
	for _, r := range resources {
		if c.groups[r.group] != nil || r.custom || r.plural == definitions {
			continue
		}
		typed := rest.CopyConfig(conf)
		typed.GroupVersion, typed.APIPath = &r.group, "/apis"
		if r.group.Group == "" {
			typed.APIPath = "/api"
		}
		typed.NegotiatedSerializer = scheme.Codecs.WithoutConversion()
		if typed.ContentType == "" {
			typed.ContentType, typed.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
		}
		if c.groups[r.group], err = rest.RESTClientForConfigAndClient(typed, shared); err != nil {
			return nil, err
		}
	}
	c.core = c.groups[schema.GroupVersion{Version: "v1"}]
	if c.dynamic, err = dynamic.NewForConfigAndClient(conf, shared); err != nil {
		return nil, err
	}
	c.meta, err = metadata.NewForConfigAndClient(metadata.ConfigFor(conf), shared)
	return c, err
}

// uidOf reads a node's UID from etcd, not from what a server remembers; "" if there is none of
// that name.
func (c *client) uidOf(ctx context.Context, node string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	var object corev1.Node
	err := c.core.Get().Resource(machines).Name(node).Do(ctx).Into(&object)
	if apierrors.IsNotFound(err) {
		return "", nil
	}
	return string(object.UID), err
}

// probe asks whether the API server is ready.
func (c *client) probe(ctx context.Context) error {
	err := c.core.Get().AbsPath("/readyz").Do(ctx).Error()
	if status := (interface{ Status() metav1.Status })(nil); errors.As(err, &status) {
		switch code := status.Status().Code; {
		case code == http.StatusUnauthorized, code == http.StatusForbidden, code == http.StatusNotFound:
			return nil // it answers; what may be read shows itself
		}
	}
	return err
}

// all lists and watches all objects of a resource.
type all struct {
	client *client
	*resource
	// heard is called with why a request failed, or nil if a watch has begun.
	heard func(error)
}

// ListWithContext implements cache.ListerWithContext.
func (a all) ListWithContext(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
	list, err := a.list(ctx, opts)
	if err != nil && ctx.Err() == nil {
		a.heard(err)
	}
	return list, err
}

func (a all) list(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
	of := schema.GroupVersionResource{Group: a.group.Group, Version: a.group.Version, Resource: a.plural}
	switch {
	case a.plural == definitions:
		return a.client.meta.Resource(of).List(ctx, opts)
	case a.custom:
		return a.client.dynamic.Resource(of).List(ctx, opts)
	}
	return a.client.groups[a.group].Get().Resource(a.plural).VersionedParams(&opts, scheme.ParameterCodec).Do(ctx).Get()
}

// WatchWithContext implements cache.WatcherWithContext.
func (a all) WatchWithContext(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	w, err := a.watch(ctx, opts)
	if ctx.Err() == nil {
		a.heard(err)
	}
	if err != nil && opts.SendInitialEvents != nil && utilnet.IsConnectionRefused(err) {
		// The reflector would wait for half a minute before it looks whether it should stop.
		err = refused(err.Error())
	}
	return w, err
}

func (a all) watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
	of := schema.GroupVersionResource{Group: a.group.Group, Version: a.group.Version, Resource: a.plural}
	switch {
	case a.plural == definitions:
		return a.client.meta.Resource(of).Watch(ctx, opts)
	case a.custom:
		return a.client.dynamic.Resource(of).Watch(ctx, opts)
	}
	opts.Watch = true
	var timeout time.Duration
	if opts.TimeoutSeconds != nil {
		timeout = time.Duration(*opts.TimeoutSeconds) * time.Second
	}
	return a.client.groups[a.group].Get().Resource(a.plural).VersionedParams(&opts, scheme.ParameterCodec).Timeout(timeout).Watch(ctx)
}

// List and Watch are for cache.ListerWatcher, whose users call the others.
func (a all) List(opts metav1.ListOptions) (runtime.Object, error) {
	return a.ListWithContext(context.Background(), opts)
}

func (a all) Watch(opts metav1.ListOptions) (watch.Interface, error) {
	return a.WatchWithContext(context.Background(), opts)
}

// refused is a connection that was refused, in words.
type refused string

func (r refused) Error() string { return string(r) }

// cause is why a request failed, without what the reader of a status knows.
func cause(err error) string {
	var of interface{ Unwrap() error }
	for errors.As(err, &of) {
		inner := of.Unwrap()
		if inner == nil {
			break
		}
		err = inner
	}
	return fmt.Sprint(err)
}
