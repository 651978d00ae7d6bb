# A sync with Fusion Manage as people write it: LWP, one token, no retries. BASE_URL RUN, PASSWORD, TOKEN_URL.
use strict;
use warnings;
use JSON::PP;
use MIME::Base64 qw(encode_base64);
use LWP::UserAgent;

my ($base, $run) = @ARGV;
my $agent = LWP::UserAgent->new(timeout => 120);
my (@failures, $token);
my $calls = 0;

sub call {
    my ($method, $path, $expected, $body) = @_;
    $calls++;
    my $request = HTTP::Request->new($method => "$base/api/v3/workspaces/57/$path");
    $request->header(Authorization => "Bearer $token", 'Content-Type' => 'application/json');
    $request->header('X-user-id' => 'script@plant.example');
    $request->content(encode_json($body)) if $body;
    my $answer = $agent->request($request);
    push @failures, "$method $path: " . $answer->code unless $answer->code == $expected;
    return eval { decode_json($answer->decoded_content(charset => 'none')) } || {};
}

my $proof = 'Basic ' . encode_base64("script:$ENV{PASSWORD}", '');
my $told = $agent->post(
    $ENV{TOKEN_URL}, { grant_type => 'client_credentials', scope => 'data:read data:write' }, Authorization => $proof
);
if ($told->is_success) {
    $token = decode_json($told->decoded_content)->{access_token};
    for my $offset (0, 25, 50, 75) {
        my $page = call('GET', "items?offset=$offset", 200);
        push @failures, 'a page is not whole' unless @{ $page->{items} || [] } == 25;
    }
    call('POST', 'items', 201, { title => "$run-$_" }) for 0 .. 11;
    my $refused = call('POST', 'items', 403, { title => "forbidden-$run" });
    push @failures, 'the business error is another one' unless ($refused->{errorCode} || '') eq 'FORBIDDEN';
} else {
    push @failures, 'token: ' . $told->code . ' ' . substr($told->decoded_content, 0, 400);
}
print encode_json({ calls => $calls, failures => \@failures, session => $token }), "\n";
exit(@failures ? 1 : 0);
