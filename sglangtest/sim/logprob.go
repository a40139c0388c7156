package sim

import "strconv"

// A logprobs is what a request wants to know about probabilities. The values are made up; their number, shape and
// order are SGLang's.
type logprobs struct {
	start int   // first prompt token that is told; -1: none
	top   int   // alternatives for each token
	ids   []int // tokens that are told at each place; nil: none
	text  bool  // with each token's text
}

// logprob is the value of the token at a place of an answer, and of its alternatives by rank.
func logprob(place, rank int) float64 { return -0.125*float64(1+place%wordCount) - 0.25*float64(rank) }

// appendLogprob appends one token's value, id and text.
func (l *logprobs) appendLogprob(b []byte, v float64, id int) []byte {
	b = strconv.AppendFloat(append(b, '['), v, 'f', -1, 64)
	if v == float64(int64(v)) {
		b = append(b, ".0"...)
	}
	b = strconv.AppendInt(append(b, ','), int64(id), 10)
	if !l.text {
		return append(b, ",null]"...)
	}
	return append(appendString(append(b, ','), tokenText(id)), ']')
}

// appendRow appends what a place tells of alternatives, or of the wanted ids.
func (l *logprobs) appendRow(b []byte, place, id int, wanted []int) []byte {
	b = append(b, '[')
	if wanted != nil {
		for i, w := range wanted {
			if i > 0 {
				b = append(b, ',')
			}
			b = l.appendLogprob(b, logprob(place, 1+i), w)
		}
		return append(b, ']')
	}
	for rank := range l.top {
		if rank > 0 {
			b = append(b, ',')
		}
		b = l.appendLogprob(b, logprob(place, rank), id+rank)
	}
	return append(b, ']')
}

// appendList appends a member that is a list of what each appends for a place.
func appendList(b []byte, name string, from, to int, each func(b []byte, i int) []byte) []byte {
	b = append(append(append(b, '"'), name...), `":[`...)
	for i := from; i < to; i++ {
		if i > from {
			b = append(b, ',')
		}
		b = each(b, i)
	}
	return append(b, ']')
}

// answerID is the id of a token of every answer, and promptID that of a token of the stream's prompt, or a stand-in if that is not
// known.
func answerID(i int) int { return firstWordID + i%wordCount }

func (s *stream) promptID(i int) int {
	if ids := s.prompt.TokenIDs; i < len(ids) {
		return int(ids[i])
	}
	return answerID(i)
}

// appendTo appends the fields of meta_info for the prompt of s and the tokens of its answer from one to another.
func (l *logprobs) appendTo(b []byte, s *stream, from, to int) []byte {
	list := func(b []byte, name string, from, to int, each func(b []byte, i int) []byte) []byte {
		return appendList(append(b, ','), name, from, to, each)
	}
	start := s.promptTokens
	if l.start >= 0 {
		start = min(l.start, start)
	}
	answer, prompt := answerID, s.promptID
	b = list(b, "input_token_logprobs", start, s.promptTokens, func(b []byte, i int) []byte {
		if i > start {
			return l.appendLogprob(b, logprob(i, 0), prompt(i))
		}
		b = strconv.AppendInt(append(b, "[null,"...), int64(prompt(i)), 10) // nothing comes before it
		if !l.text {
			return append(b, ",null]"...)
		}
		return append(appendString(append(b, ','), tokenText(prompt(i))), ']')
	})
	b = list(b, "output_token_logprobs", from, to, func(b []byte, i int) []byte { return l.appendLogprob(b, logprob(i, 0), answer(i)) })
	b = strconv.AppendInt(append(b, `,"output_token_logprobs_length":`...), int64(to), 10)
	rows := func(b []byte, kind string, wanted []int) []byte {
		b = list(b, "input_"+kind, start, s.promptTokens, func(b []byte, i int) []byte {
			if i == start {
				return append(b, "null"...)
			}
			return l.appendRow(b, i, prompt(i), wanted)
		})
		return list(b, "output_"+kind, from, to, func(b []byte, i int) []byte { return l.appendRow(b, i, answer(i), wanted) })
	}
	if l.top > 0 {
		b = rows(b, "top_logprobs", nil)
	}
	if l.ids != nil {
		b = rows(b, "token_ids_logprobs", l.ids)
	}
	return b
}

// appendCompletion appends the logprobs of a text completion for tokens of an answer. Before the first of them come those of the
// prompt, if they are wanted, of which the first has none (openai/utils.py, to_openai_style_logprobs).
func (l *logprobs) appendCompletion(b []byte, s *stream, from, to int) []byte {
	prompt := 0
	if from == 0 && l.start == 0 {
		prompt = s.promptTokens
	}
	list := func(b []byte, name string, hasFirst bool, each func(b []byte, place, id int) []byte) []byte {
		return appendList(b, name, 0, prompt+to-from, func(b []byte, i int) []byte {
			switch {
			case i >= prompt:
				return each(b, from+i-prompt, answerID(from+i-prompt))
			case i == 0 && !hasFirst:
				return append(b, "null"...)
			}
			return each(b, i, s.promptID(i))
		})
	}
	value := func(b []byte, place, rank int) []byte { return append(b, showFloat(logprob(place, rank))...) }
	b = append(b, '{')
	b = list(b, "text_offset", true, func(b []byte, _, _ int) []byte { return append(b, "-1"...) })
	b = list(append(b, ','), "token_logprobs", false, func(b []byte, place, _ int) []byte { return value(b, place, 0) })
	b = list(append(b, ','), "tokens", true, func(b []byte, _, id int) []byte { return appendString(b, tokenText(id)) })
	if l.top == 0 {
		return append(b, `,"top_logprobs":[]}`...)
	}
	b = list(append(b, ','), "top_logprobs", false, func(b []byte, place, id int) []byte {
		b = append(b, '{')
		for rank := range l.top {
			if rank > 0 {
				b = append(b, ',')
			}
			b = value(append(appendString(b, tokenText(id+rank)), ':'), place, rank)
		}
		return append(b, '}')
	})
	return append(b, '}')
}

// appendChat appends the logprobs of a chat completion for tokens of an answer.
func (l *logprobs) appendChat(b []byte, from, to int) []byte {
	token := func(b []byte, id int, v float64) []byte {
		text := tokenText(id)
		b = append(appendString(append(b, `{"token":`...), text), `,"bytes":[`...)
		for i := range len(text) {
			if i > 0 {
				b = append(b, ',')
			}
			b = strconv.AppendInt(b, int64(text[i]), 10)
		}
		return append(append(b, `],"logprob":`...), showFloat(v)...)
	}
	b = append(b, `{"content":[`...)
	for i := from; i < to; i++ {
		if i > from {
			b = append(b, ',')
		}
		id := firstWordID + i%wordCount
		b = append(token(b, id, logprob(i, 0)), `,"top_logprobs":[`...)
		for rank := range l.top {
			if rank > 0 {
				b = append(b, ',')
			}
			b = append(token(b, id+rank, logprob(i, rank)), '}')
		}
		b = append(b, `]}`...)
	}
	return append(b, `]}`...)
}
