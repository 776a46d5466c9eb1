package store

import (
	"context"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A peer's store is whatever its operator runs there. etcd's client assumes that every
// answer is well-formed and panics over one that is not, so answers are checked before
// the client sees them.

var errBroken = status.Error(codes.DataLoss, "the store's answer is not one of an etcd")

// whole checks that an answer has the fields that etcd's client reads unchecked.
func whole(answer any) error {
	switch a := answer.(type) {
	case *etcdserverpb.RangeResponse:
		// Without a revision, each page would be taken for the first.
		if a.GetHeader().GetRevision() < 1 || a.GetMore() && len(a.GetKvs()) == 0 {
			return errBroken
		}
	case *etcdserverpb.WatchResponse:
		if a.GetHeader() == nil {
			return errBroken
		}
		for _, e := range a.GetEvents() {
			if e.GetKv() == nil {
				return errBroken
			}
		}
	}
	return nil
}

func wholeAnswer(ctx context.Context, method string, req, answer any, cc *grpc.ClientConn, call grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	if err := call(ctx, method, req, answer, cc, opts...); err != nil {
		return err
	}
	return whole(answer)
}

func wholeStream(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, open grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	s, err := open(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, err
	}
	return checkedStream{s}, nil
}

type checkedStream struct{ grpc.ClientStream }

func (s checkedStream) RecvMsg(m any) error {
	if err := s.ClientStream.RecvMsg(m); err != nil {
		return err
	}
	return whole(m)
}
