"""The words of the tiny world: what can be seen, what can be asked, and a word-level tokenizer over them."""

SHAPES = ("circle", "square", "triangle", "cross")
NEEDLE = "star"  # shown for an instant; never counted among the shapes
COLORS = ("red", "green", "blue", "yellow", "white", "purple")
SCENES = ("forest", "ocean", "desert", "night", "brick")
DIRECTIONS = ("left", "right", "up", "down")
PLACES = ("topleft", "topright", "bottomleft", "bottomright")
NUMBERS = ("one", "two", "three", "four")

CHOICES: dict[str, tuple[str, ...]] = {
    "color": COLORS, "shape": SHAPES, "where": PLACES, "motion": DIRECTIONS, "change": COLORS, "order": SHAPES,
    "count": NUMBERS, "scenes": NUMBERS, "scene_of": SCENES, "needle": COLORS, "needle_scene": SCENES,
}  # fmt: skip
"""Question type -> the answers that it admits."""
QUESTION_TYPES = tuple(CHOICES)

PAD, UNKNOWN, START, END, IMAGE, VIDEO = "<pad>", "<unk>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"
_SPECIAL = (PAD, UNKNOWN, START, END, IMAGE, VIDEO, "user", "assistant")
_GRAMMAR = (
    *("what", "color", "is", "the", "shape", "where", "which", "way", "does", "move", "become", "appeared", "first"),
    *("last", "how", "many", "shapes", "scenes", "in", "scene", "?", "of"),
)
WORDS = tuple(dict.fromkeys(_SPECIAL + _GRAMMAR + SHAPES + (NEEDLE,) + COLORS + SCENES + DIRECTIONS + PLACES + NUMBERS))
WORD_ID = {word: i for i, word in enumerate(WORDS)}
VOCABULARY_SIZE = 64

PROMPT_HEAD = (START, "user")  # then the video, then the question
PROMPT_TAIL = (END, START, "assistant")  # then the answer word and END
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|> ' + message['role'] }}"
    "{% if message['content'] is string %}{{ ' ' + message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ ' ' + part['text'] }}"
    "{% else %}{{ ' <' + part['type'] + '>' }}{% endif %}{% endfor %}{% endif %}{{ ' <|im_end|> ' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|> assistant' }}{% endif %}"
)


def tokenizer():
    """One token per word, split at white space, in the format that ``from_pretrained`` reads back."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(WORD_ID, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token=UNKNOWN,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        additional_special_tokens=[IMAGE, VIDEO],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
