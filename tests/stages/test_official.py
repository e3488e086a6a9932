from transcoders.formats.references import layer_of, names_of


def test_a_reference_may_say_its_layer():
    assert layer_of("models/theirs@9") == ("models/theirs", 9)
    assert layer_of("google/gemma-scope-2-270m-pt:transcoder_all/layer_9") == (
        "google/gemma-scope-2-270m-pt:transcoder_all/layer_9",
        None,
    )
    assert layer_of("me@home/theirs") == ("me@home/theirs", None)


def test_names_are_folders_where_these_tell_them_apart():
    small, big = "transcoder_all/layer_9_width_16k_l0_small", "transcoder_all/layer_9_width_16k_l0_big"
    assert names_of([f"a/b:{small}", f"a/b:{big}/"]) == ["layer_9_width_16k_l0_small", "layer_9_width_16k_l0_big"]
    assert names_of([f"a/pt:{small}", f"a/it:{small}"]) == [f"a/pt:{small}", f"a/it:{small}"]
    assert names_of(["a/b:layer_0/width_16k/average_l0_76"]) == ["a/b:layer_0/width_16k/average_l0_76"]
