# A sync with Arena's machine user as people write it: LWP, one token, no retries. BASE_URL RUN, PASSWORD, TOKEN_URL.
use strict;
use warnings;
use JSON::PP;
use LWP::UserAgent;

my ($base, $run) = @ARGV;
my $agent = LWP::UserAgent->new(timeout => 120);
my (@failures, $token);
my $calls = 0;

sub call {
    my ($method, $path, $expected, $body) = @_;
    $calls++;
    my $request = HTTP::Request->new($method => "$base$path");
    $request->header(Authorization => "Bearer $token", 'Content-Type' => 'application/json');
    $request->content(encode_json($body)) if $body;
    my $answer = $agent->request($request);
    push @failures, "$method $path: " . $answer->code unless $answer->code == $expected;
    return eval { decode_json($answer->decoded_content(charset => 'none')) } || {};
}

my $told = $agent->post($ENV{TOKEN_URL}, {
    grant_type => 'client_credentials', client_id => 'script', client_secret => $ENV{PASSWORD}, workspace_id => 7
});
if ($told->is_success) {
    $token = decode_json($told->decoded_content)->{access_token};
    for my $offset (0, 20, 40, 60) {
        my $page = call('GET', "/items?offset=$offset&limit=20", 200);
        push @failures, 'a page is not whole' unless @{ $page->{results} || [] } == 20;
    }
    call('POST', '/items', 201, { number => "$run-$_", name => 'Bolt' }) for 0 .. 11;
    my $refused = call('PUT', '/items/X/lifecycle', 400, {});
    push @failures, 'the business error is another one' unless ($refused->{errors}[0]{code} || 0) == 4001;
} else {
    push @failures, 'token: ' . $told->code . ' ' . substr($told->decoded_content, 0, 400);
}
print encode_json({ calls => $calls, failures => \@failures, session => $token }), "\n";
exit(@failures ? 1 : 0);
