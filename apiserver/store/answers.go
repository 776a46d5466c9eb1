package store

import (
	"context"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// A peer's store is whatever its operator runs there. etcd's client takes for
// granted that every answer is whole and ends the process over one that is not,
// so answers are looked at before it sees them.

var errBroken = status.Error(codes.DataLoss, "the store's answer is not an etcd's")

// whole says whether an answer has what etcd's client reads without looking.
func whole(answer any) error {
	switch a := answer.(type) {
	case *etcdserverpb.RangeResponse:
		if a.GetHeader() == nil || a.GetMore() && len(a.GetKvs()) == 0 {
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
