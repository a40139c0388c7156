package server

import (
	"context"
	"errors"
)

func (p *process) Launch(context.Context, Spec) (Instance, error) {
	return nil, errors.Join(p.fault, errors.New("local processes need Linux or another Unix"))
}
