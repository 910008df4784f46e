"""Guards the rendering of conversations: where the prompt ends, which token ends the turn, what truncation keeps."""

import copy
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.chat import ChatFormat
from eval.errors import KeelBenchError

# Chat templates written for these tests in the manner of well-known ones, spelt with tokens that SmolLM2 has.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (  # begins with a document token, trims contents, nothing behind the end of a turn
    "{{ '<|endoftext|>' }}{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '<file_sep>\n\n' + m['content'] | trim + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<file_sep>\n\n' }}{% endif %}"
)
MISTRAL = (  # the space before the answer belongs to the answer, which ends with the end of sequence; no system turn
    "{{ '<|im_start|>' }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + '<|endoftext|>' }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
PHI3 = (  # a newline behind the end of each turn and, in a finished conversation, an end of sequence behind that
    "{% for m in messages %}{{ '<issue_comment>' if m['role'] == 'assistant' else '<issue_start>' }}"
    "{{ '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<issue_comment>\n' }}{% else %}{{ '<|endoftext|>' }}{% endif %}"
)
LLAMA2 = (  # a space between the answer and the end of sequence
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<|im_start|>[INST] ' + m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' <|endoftext|>' }}{% endif %}{% endfor %}"
)
HEADS = {  # template -> (what precedes the user's text, what stands between it and the answer)
    "chatml": (CHATML, "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"),
    "llama3": (
        LLAMA3,
        "<|endoftext|><|im_start|>user<file_sep>\n\n",
        "<|im_end|><|im_start|>assistant<file_sep>\n\n",
    ),
    "mistral": (MISTRAL, "<|im_start|>[INST] ", " [/INST]"),
    "phi3": (PHI3, "<issue_start>\n", "<|im_end|>\n<issue_comment>\n"),
    "llama2": (LLAMA2, "<|im_start|>[INST] ", " [/INST]"),
}
ENDS = {  # template -> (content as rendered, end-of-turn token, what follows it)
    "chatml": ("{}", "<|im_end|>", "\n"),
    "llama3": ("{}", "<|im_end|>", ""),
    "mistral": (" {}", "<|endoftext|>", ""),
    "phi3": ("{}", "<|im_end|>", "\n<|endoftext|>"),
    "llama2": (" {} ", "<|endoftext|>", ""),
}


# Without control characters and what lies beyond the basic plane: SmolLM2's vocabulary lacks some of their bytes.
PRINTED = st.characters(max_codepoint=0xFFFF, exclude_categories=["Cs", "Cn", "Co", "Cc"], include_characters="\n\t")
TEXT = st.text(PRINTED, max_size=40)


def with_template(tokenizer, template):
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


@pytest.fixture(scope="module")
def formats(tokenizer):
    return {name: ChatFormat(with_template(tokenizer, template)) for name, (template, *_) in HEADS.items()}


def ids_of(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(
    ("user", "response"),
    [
        ("What is rain?", "Water that falls."),
        ("Two lines\n\nand a third: é 雨 🌧", "First line.\n\n- a list\n- of ünïcode 水 ☔️\n\tand a tab"),
        ("x", "y"),
    ],
)
def test_a_conversation_is_prompt_content_end_of_turn_and_trailer(formats, tokenizer, name, user, response):
    _, before, between = HEADS[name]
    content, end, trailer = ENDS[name]
    conversation = formats[name].conversation(user, response)
    prompt, answer = conversation.ids[: conversation.prompt_length], conversation.ids[conversation.prompt_length :]
    assert list(prompt) == ids_of(tokenizer, before + user + between) == formats[name].prompt_ids(user)
    assert tokenizer.decode(answer) == content.format(response) + end + trailer
    assert conversation.ids[conversation.end_of_turn] == tokenizer.convert_tokens_to_ids(end)
    assert tokenizer.decode(conversation.ids[conversation.end_of_turn + 1 :]) == trailer
    supervised = conversation.ids[conversation.prompt_length :][: conversation.response_length]
    assert tokenizer.decode(supervised) == content.format(response) + end
    assert not conversation.truncated


@pytest.mark.parametrize("name", HEADS)
def test_generation_stops_at_the_end_of_turn_and_at_nothing_else(formats, tokenizer, name):
    _, end, _ = ENDS[name]
    wanted = tokenizer.convert_tokens_to_ids(end)
    assert formats[name].end_of_turn_id == wanted
    for own, also in {None: [], 7: [7], wanted: []}.items():
        model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=own))
        assert formats[name].stop_ids(model) == sorted([wanted, *also])
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[9, wanted, 3]))
    assert formats[name].stop_ids(model) == sorted([wanted, 9, 3])


@pytest.mark.parametrize("name", HEADS)
@given(TEXT, TEXT)
def test_any_text_decodes_to_what_the_template_renders(formats, name, user, response):
    chat = formats[name]
    conversation = chat.conversation(user, response)
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": response}]
    assert chat.tokenizer.decode(conversation.ids) == chat.tokenizer.apply_chat_template(turns, tokenize=False)
    assert list(conversation.ids[: conversation.prompt_length]) == chat.prompt_ids(user)
    assert conversation.ids[conversation.end_of_turn] == chat.end_of_turn_id


def test_smollm2s_own_template_adds_its_system_turn(tokenizer):
    chat = ChatFormat(tokenizer)
    conversation = chat.conversation("Hi", "Hello")
    assert tokenizer.decode(conversation.ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    )
    given_system = chat.conversation("Hi", "Hello", system="Be brief.")
    assert tokenizer.decode(given_system.ids).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user")
    assert list(given_system.ids[: given_system.prompt_length]) == chat.prompt_ids("Hi", "Be brief.")


def test_a_response_that_starts_with_a_newline_keeps_the_prompts_ids(formats, tokenizer):
    chat = formats["chatml"]
    conversation = chat.conversation("Hi", "\n\nHello")
    joined = ids_of(tokenizer, tokenizer.decode(conversation.ids))
    assert joined != list(conversation.ids)  # the joined text merges the newlines: what tokenising apart avoids
    assert list(conversation.ids[: conversation.prompt_length]) == chat.prompt_ids("Hi")
    content = conversation.ids[conversation.prompt_length : conversation.end_of_turn]
    assert tokenizer.decode(content) == "\n\nHello"


def test_a_trimming_template_trims_and_an_empty_response_is_the_end_of_turn_alone(formats, tokenizer):
    conversation = formats["llama3"].conversation("Hi", "  \n Hello \n")
    assert tokenizer.decode(conversation.ids[conversation.prompt_length : conversation.end_of_turn]) == "Hello"
    for name in ("chatml", "llama3", "phi3"):
        empty = formats[name].conversation("Hi", "")
        assert empty.response_length == 1
        assert empty.end_of_turn == empty.prompt_length


def test_content_that_quotes_the_probe_or_ends_like_the_trailer_is_untouched(formats, tokenizer):
    for response in ("Probe", "Probe Probe\n", "Hello there", "ends with newlines\n\n"):
        conversation = formats["chatml"].conversation("Probe: Hello there", response)
        content = conversation.ids[conversation.prompt_length : conversation.end_of_turn]
        assert tokenizer.decode(content) == response


LONG = "one two three four five six seven eight nine ten " * 30


@pytest.mark.parametrize("name", HEADS)
def test_a_long_response_is_cut_on_the_right_and_keeps_its_end_of_turn(formats, name):
    chat = formats[name]
    whole = chat.conversation("Count, please.", LONG)
    cut = chat.conversation("Count, please.", LONG, max_length=90)
    trailer = whole.ids[whole.end_of_turn :]
    assert cut.truncated
    assert len(cut.ids) == 90
    assert cut.prompt_length == whole.prompt_length
    assert cut.ids[: 90 - len(chat.suffix_ids)] == whole.ids[: 90 - len(chat.suffix_ids)]
    assert cut.ids[cut.end_of_turn] == chat.end_of_turn_id
    assert cut.ids[cut.end_of_turn :] == trailer


@pytest.mark.parametrize("name", HEADS)
def test_a_long_prompt_loses_its_middle_and_keeps_the_templates_head_and_tail(formats, name):
    chat = formats[name]
    tokenizer = chat.tokenizer
    _, before, between = HEADS[name]
    cut = chat.conversation(LONG, LONG, max_length=90)
    assert cut.truncated
    assert len(cut.ids) == 90
    head, tail = ids_of(tokenizer, before + "one two"), ids_of(tokenizer, between)
    assert list(cut.ids[: len(head)]) == head
    assert list(cut.ids[cut.prompt_length - len(tail) : cut.prompt_length]) == tail
    whole = chat.conversation("x", LONG)
    assert cut.ids[cut.prompt_length :][:16] == whole.ids[whole.prompt_length :][:16]
    assert cut.ids[cut.end_of_turn] == chat.end_of_turn_id
    short_answer = chat.conversation(LONG, "Yes.", max_length=90)
    assert len(short_answer.ids) == 90
    assert "Yes." in tokenizer.decode(short_answer.ids[short_answer.prompt_length :])


def test_nothing_is_cut_at_exactly_the_allowed_length(formats):
    chat = formats["chatml"]
    whole = chat.conversation("Count, please.", LONG)
    assert chat.conversation("Count, please.", LONG, max_length=len(whole.ids)) == whole
    one_less = chat.conversation("Count, please.", LONG, max_length=len(whole.ids) - 1)
    assert one_less.truncated
    assert len(one_less.ids) == len(whole.ids) - 1


@given(st.integers(0, 120), st.integers(0, 120), st.integers(1, 120))
def test_no_conversation_is_longer_than_allowed(formats, user_words, answer_words, max_length):
    chat = formats["phi3"]
    user, response = "word " * user_words, "word " * answer_words
    try:
        conversation = chat.conversation(user, response, max_length=max_length)
    except KeelBenchError as error:
        assert max_length < 16 + len(chat.suffix_ids) + 2, error  # noqa: PT017
        return
    assert len(conversation.ids) <= max_length
    assert conversation.ids[conversation.end_of_turn] == chat.end_of_turn_id
    assert conversation.response_length >= 1


def test_a_tokenizer_without_a_template_is_refused(tokenizer):
    with pytest.raises(KeelBenchError, match="has no chat template"):
        ChatFormat(with_template(tokenizer, None))


@pytest.mark.parametrize("behind", ["", "\n", "\n\n### "])
def test_a_template_without_an_end_of_turn_token_is_refused(tokenizer, behind):
    template = (
        "{% for m in messages %}{{ '### ' + m['role'] + ':\n' + m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ 'BEHIND' }}{% else %}{{ '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '### assistant:\n' }}{% endif %}"
    ).replace("BEHIND", behind)
    with pytest.raises(KeelBenchError, match="no end-of-turn token"):
        ChatFormat(with_template(tokenizer, template)).conversation("Hi", "Hello")


def test_a_template_whose_generation_prompt_is_no_prefix_is_refused(tokenizer):
    template = CHATML.replace("'<|im_start|>assistant\n' }}", "'<|im_start|>assistant\n<think>' }}")
    with pytest.raises(KeelBenchError, match="not a prefix"):
        _ = ChatFormat(with_template(tokenizer, template)).suffix_ids
    with pytest.raises(KeelBenchError, match="rewrites the prompt"):
        ChatFormat(with_template(tokenizer, template)).conversation("Hi", "Hello")


def test_a_turn_the_template_refuses_is_an_error_with_the_templates_words(formats):
    with pytest.raises(KeelBenchError, match="Only user and assistant roles are supported!"):
        formats["mistral"].prompt_ids("Hi", system="Be brief.")
