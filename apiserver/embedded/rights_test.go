package embedded

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
)

// requests is a stream whose client sends as many requests as it is asked for.
type requests struct {
	grpc.ServerStream
	ctx context.Context
}

func (r requests) Context() context.Context { return r.ctx }
func (requests) RecvMsg(any) error          { return nil }

// A watch has not ended while etcd still looks at a request of it: the database would be
// closed under it. What comes later is not looked at.
func TestAWatchEndsAfterItsRequests(t *testing.T) {
	for _, test := range []struct {
		name  string
		looks time.Duration
		again bool // it asks for another request
		wants time.Duration
	}{
		{"it is done at once", 0, true, 0},
		{"it takes a moment", 300 * time.Millisecond, true, 300 * time.Millisecond},
		{"it ends by itself", 0, false, leavePatience},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began, done := time.Now(), make(chan error, 1)
				err := new(guard).stream(nil, requests{ctx: t.Context()}, &grpc.StreamServerInfo{FullMethod: etcdserverpb.Watch_Watch_FullMethodName},
					func(_ any, s grpc.ServerStream) error {
						if err := s.RecvMsg(nil); err != nil {
							t.Error(err)
						}
						go func() {
							time.Sleep(test.looks)
							if test.again {
								done <- s.RecvMsg(nil)
							}
						}()
						return nil
					})
				if took := time.Since(began); err != nil || took != test.wants {
					t.Errorf("ended after %v, want %v: %v", took, test.wants, err)
				}
				if test.again {
					if err := <-done; err == nil {
						t.Error("a request was looked at after the end")
					}
				}
			})
		})
	}
}
