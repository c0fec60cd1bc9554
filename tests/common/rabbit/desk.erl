%% Evaluates expressions that a test sends to a local socket, and answers with their value as JSON.
%% `rabbitmqctl eval` does the same, and takes a second of processor time for each.
spawn(fun() ->
    _ = file:delete(Path),
    Options = [binary, {ifaddr, {local, Path}}, {packet, 4}, {active, false}, {backlog, 64}],
    {ok, Listener} = gen_tcp:listen(0, Options),
    Answer = fun(Socket) ->
        {ok, Text} = gen_tcp:recv(Socket, 0),
        Reply = try
            {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Text)),
            {ok, Expressions} = erl_parse:parse_exprs(Tokens),
            {value, Value, _} = erl_eval:exprs(Expressions, erl_eval:new_bindings()),
            [<<"+">>, try rabbit_json:encode(Value) catch _:_ ->
                rabbit_json:encode(unicode:characters_to_binary(io_lib:format("~tp", [Value])))
            end]
        catch Class:Reason ->
            [<<"-">>, unicode:characters_to_binary(io_lib:format("~tp: ~tp", [Class, Reason]))]
        end,
        ok = gen_tcp:send(Socket, Reply),
        gen_tcp:close(Socket)
    end,
    Serve = fun Serve() ->
        {ok, Socket} = gen_tcp:accept(Listener),
        spawn(fun() -> Answer(Socket) end),
        Serve()
    end,
    Serve()
end).
